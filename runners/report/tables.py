"""The tables of a report: header and rows of text, for HTML and Markdown alike."""

from __future__ import annotations

from dataclasses import dataclass, field

from foundations.results import wilson_interval
from runners.report.collect import FinishedRun
from runners.summaries import describe_set, grid_table


@dataclass
class Table:
    """A title, a header and rows; `commands` repeats each row's run, `places` says where it is."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def add(self, row: list[str], run: FinishedRun) -> None:
        """A row, with where it comes from."""
        self.rows.append(row)
        self.commands.append(run.hparams.get("command", ""))
        self.places.append(run.relative)


def accuracy_table(tests: list[FinishedRun]) -> Table:
    """One row for each tested model."""
    table = Table("Accuracy", ["model", "clean", "isotropic attack", "nonisotropic attack", "examples"])
    for run in tests:
        cells = [_accuracy(run, name) for name in ("standard", "adv", "N_adv")]
        examples = next(run.result[name]["num_examples"] for name in ("standard", "adv", "N_adv") if name in run.result)
        table.add([run.label, *cells, str(examples)], run)
    return table


def _accuracy(run: FinishedRun, name: str) -> str:
    figures = run.result.get(name)
    if figures is None:
        return "-"
    low, high = wilson_interval(figures["accuracy"], figures["num_examples"])
    shown = f"{figures['accuracy']:.4f} [{low:.3f}, {high:.3f}]"
    return shown if name == "standard" else f"{shown} at {describe_set(figures)}"


def grid_table_of(run: FinishedRun) -> Table | None:
    """Accuracy by threshold and radius, where a grid was asked for."""
    figures = run.result["N_adv"]
    if len(figures["curve"]) < 2:
        return None
    header, rows = grid_table(figures)
    table = Table(f"Grid of {run.label}, {figures['num_examples']} examples", header)
    for row in rows:
        table.rows.append(row)
    return table


def warnings_table(tests: list[FinishedRun]) -> list[Table]:
    """Why some figures should be doubted; no table where there is no reason."""
    table = Table("Warnings", ["model", "why its figure may be too high"])
    for run in tests:
        for message in run.result["N_adv"]["warnings"]:
            table.add([run.label, message], run)
    return [table] if table.rows else []


def training_table(trainings: list[FinishedRun]) -> Table:
    """One row for each trained model."""
    table = Table("Training", ["model", "steps", "training loss", "test accuracy", "seconds"])
    for run in trainings:
        final = run.result["final"]
        loss = "-" if final["train_loss"] is None else f"{final['train_loss']:.4f}"
        seconds = f"{run.result['wall_seconds']:.1f}"
        table.add([run.label, str(run.result["steps"]), loss, f"{final['test_accuracy']:.4f}", seconds], run)
    return table


def anchors_table(threats: list[FinishedRun]) -> Table:
    """One row for each choice of anchors."""
    table = Table("Anchors", ["anchors", "number", "per class", "lowest coverage", "images left out"])
    for run in threats:
        lowest = min(run.result["coverage"].values())
        counts = [str(run.result["num_anchors"]), str(run.result["per_label"])]
        table.add([run.label, *counts, f"{lowest:.3f}", str(run.result["dropped"]["count"])], run)
    return table
