"""report: one page of tables and pictures over all finished runs of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundations.errors import RunError
from foundations.files import write_text
from runners.base import Runner
from runners.commands import command
from runners.pictures import write_figure
from runners.report.collect import FinishedRun, finished_runs
from runners.report.page import html_page, markdown_page
from runners.report.plots import accuracy_bars, gauge_curves, training_curves
from runners.report.tables import (
    Table,
    accuracy_table,
    anchors_table,
    grid_table_of,
    training_table,
    warnings_table,
)

MOST_STRIPS = 12  # pictures of examples on one page


class Report(Runner):
    """Writes report.html and report.md, anew at each call: what is finished changes."""

    def prepare(self) -> None:
        root, name = self.environment.root_dir, self.desc.dataset_name
        self.runs = {runner: finished_runs(root, name, runner) for runner in ("test", "train", "compute_threat")}
        if not any(self.runs.values()):
            how = f"python nonisotropic.py train --dataset_name={name} --model_name=conv"
            raise RunError(f"no finished run of {name} below {root / 'runs'}; make one first, for example: {how}")

    def run(self) -> dict[str, Any]:
        counts = {runner: len(runs) for runner, runs in self.runs.items()}
        if self.environment.is_primary:
            title = f"Nonisotropic: {self.desc.dataset_name}"
            introduction = (
                f"{counts['test']} evaluations, {counts['train']} trained models, {counts['compute_threat']} choices "
                "of anchors. Accuracies are fractions; brackets hold 95 % intervals (Wilson)."
            )
            sections = self._sections()
            write_text(self.directory / "report.html", html_page(title, introduction, sections))
            write_text(self.directory / "report.md", markdown_page(title, introduction, sections))
        return {"counts": counts, "page": "report.html", "command": command(self.desc)}

    def _sections(self) -> list[Table | tuple[str, Path]]:
        tests, trainings, threats = (self.runs[name] for name in ("test", "train", "compute_threat"))
        sections: list[Table | tuple[str, Path]] = []
        if tests:
            sections.append(accuracy_table(tests))
            sections.append(self._figure("accuracy.png", "Accuracy with 95 % intervals", accuracy_bars(tests)))
            attacked = [run for run in tests if "N_adv" in run.result]
            sections += [grid for run in attacked if (grid := grid_table_of(run))]
            if attacked:
                caption = "Accuracy inside growing nonisotropic sets"
                sections.append(
                    self._figure(
                        "gauge_curves.png", caption, gauge_curves([(run.label, run.result) for run in attacked])
                    )
                )
            sections += warnings_table(attacked)
            sections += _pictures(tests, "strip.png", "Examples of {}: clean, perturbed, and the change (amplified)")
        if trainings:
            sections.append(training_table(trainings))
            sections.append(self._figure("training.png", "Training", training_curves(trainings)))
        if threats:
            sections.append(anchors_table(threats))
            sections += _pictures(threats, "anchors.png", "Anchors {}, a row for each class")
        return sections

    def _figure(self, name: str, caption: str, figure: Any) -> tuple[str, Path]:
        write_figure(self.directory / name, figure)
        return caption, self.directory / name


def _pictures(runs: list[FinishedRun], name: str, caption: str) -> list[Table | tuple[str, Path]]:
    with_picture = [run for run in runs if (run.path / name).is_file()]
    return [(caption.format(run.label), run.path / name) for run in with_picture[:MOST_STRIPS]]
