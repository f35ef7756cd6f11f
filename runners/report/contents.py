"""Contents of the page about one data set: sections of tables and figures, made from the finished runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runners.multi.leaderboard import can_be_compared, scatter
from runners.plots import write_figure
from runners.report import tables
from runners.report.charts import accuracy_bars, brackets, gauge_curves, training_curves
from runners.report.collect import FinishedRun
from runners.report.comparable import measured_alike
from runners.report.corruption_table import corruption_tables
from runners.report.human_table import human_table
from runners.report.page import Picture, Section
from runners.report.tables import Table
from runners.test.bracket import CERTIFIED, has_bracket

MOST_BARS = 30  # models in one chart
MOST_CURVES = 10
MOST_PICTURES = 12  # pictures of examples on one page
MOST_MEASUREMENTS = 3  # runs of evaluate_threat that are shown in full
MEASUREMENT_PICTURES = {
    "human": "{}: AUROC of telling where people see another class, with 95 % intervals",
    "human_pairs": "{}: PD is small, yet people see another class (red); it is large, yet they see the same (blue)",
    "gallery": "{}: an image, its corruptions (blue) and its unsafe twins (red) with their threats",
    "separation": "{}: AUROC of telling unsafe from safe changes, with 95 % intervals",
    "coverage": "{}: what sets hold of the unsafe changes of training images, and of the safe ones (lower is better)",
    "border": "{}: the points of sets of equal coverage that are nearest to an image of another class",
    "distributions": "{}: threats of safe, weaker and unsafe changes; medians marked",
    "severity": "{}: mean threat against severity",
    "heatmap": "{}: mean threat by corruption and severity",
    "heatmap_raw": "{}: the same in the threats' own units",
    "quadrants": "{}: mean PD against mean l-inf and perceptual distances, one mark for each corruption and severity",
    "equal_linf": "{}: changes of equal l-inf norm, with their PD",
    "regions": "{}: changes of the object alone and of the background alone",
    "directions": "{}: the nearest anchors of other classes, and the changes that lead to them",
    "class_distance": "{}: PD-W over PD of moves to another class, against the distance of the classes",
    "slice": "{}: sets of equal area in the plane through an image and two anchors",
}

Runs = dict[str, list[FinishedRun]]
Parts = list[Table | Picture]


class Contents:
    """The sections of a page; charts are written into `folder` when they are drawn."""

    def __init__(self, runs: Runs, folder: Path, prefix: str = "") -> None:
        self.runs, self.folder, self.prefix = runs, folder, prefix

    def sections(self) -> list[Section]:
        """The sections that are not empty."""
        parts: dict[str, Callable[[], Parts]] = {
            "Accuracy": self._tests,
            "Threats": self._measurements,
            "Training": self._trainings,
            "Anchors": self._anchors,
            "Environment": self._environment,
        }
        made = [Section(f"{self.prefix}{title}", make()) for title, make in parts.items()]
        return [section for section in made if section.parts]

    def _measurements(self) -> Parts:
        measurements = self.runs["evaluate_threat"]
        if not measurements:
            return []
        parts: Parts = [*_given(tables.coverage_table(measurements, self.runs["test"]))]
        parts.append(tables.separation_table(measurements))
        for run in measurements[:MOST_MEASUREMENTS]:
            parts += _given(human_table(run))
            parts += [
                Picture(caption.format(run.label), run.path / f"{name}.png", run)
                for name, caption in MEASUREMENT_PICTURES.items()
                if (run.path / f"{name}.png").is_file()
            ]
            parts += [tables.category_table(run), tables.severity_table(run)]
            parts += [tables.perturbation_table(run), tables.responsible_table(run)]
            parts += _given(tables.stability_table(run))
        return parts

    def _tests(self) -> Parts:
        tests = tables.by_accuracy([run for run in self.runs["test"] if run.split == "test"])
        if not tests:
            return self._held_out()
        parts: Parts = [tables.accuracy_table(tests)]
        caption = f"Accuracy with 95 % intervals{_of(tests, MOST_BARS)}"
        parts += self._chart("accuracy", caption, accuracy_bars, tests[:MOST_BARS])
        parts += self._certificates(tests)
        parts += self._held_out()
        parts += corruption_tables(tests)
        caption = "{}: accuracy under each corruption against severity"
        parts += _pictures(tests, "corruptions.png", caption)
        caption = "{}: mixtures of safe changes, noise, and their sum"
        parts += _pictures(tests, "moves.png", caption)
        attacked = [run for run in tests if "N_adv" in run.result]
        if attacked:
            results = [(run.label, run.result) for run in attacked[:MOST_CURVES]]
            caption = f"Security curves: accuracy inside growing nonisotropic sets{_of(attacked, MOST_CURVES)}"
            parts += self._chart("gauge_curves", caption, gauge_curves, results)
        models = [{"name": run.label, "result": run.result} for run in measured_alike(tests, ("adv", "N_adv"))]
        if can_be_compared(models):
            caption = "Accuracies against one another: clean, under isotropic, under nonisotropic attack"
            caption += "" if len(models) == len(tests) else f"; of {len(tests)} tests those measured in the same way"
            parts += self._chart("scatter", caption, scatter, models)
        parts += [grid for run in attacked[:MOST_PICTURES] if (grid := tables.grid_table_of(run))]
        for run in attacked[:MOST_PICTURES]:
            parts += _given(tables.audit_table_of(run))
        parts += _pictures(tests, "audit.png", "{}: accuracy left after a number of passes, each attack alone")
        parts += _given(tables.paired_table(self.runs["multi_test"])) + _given(tables.warnings_table(tests))
        return parts + _pictures(tests, "strip.png", "Examples of {}: clean, perturbed, and the change (amplified)")

    def _certificates(self, tests: list[FinishedRun]) -> Parts:
        """The table of certificates, and the brackets of the models that have one."""
        trained = [run for run in tests if CERTIFIED in run.result and has_bracket(run.result[CERTIFIED])]
        caption = f"Brackets of accuracy, from what is certified to what attacks leave{_of(trained, MOST_BARS)}"
        drawn = self._chart("brackets", caption, brackets, trained[:MOST_BARS]) if trained else []
        return _given(tables.certificates_table(tests)) + drawn

    def _held_out(self) -> Parts:
        """A separate table of accuracies on validation images.

        Settings are chosen by these figures, so they cannot be compared with figures on test images.
        """
        runs = [run for run in self.runs["test"] if run.split == "validation"]
        return [tables.accuracy_table(runs, "Accuracy on images held out of training")] if runs else []

    def _trainings(self) -> Parts:
        trainings = self.runs["train"]
        if not trainings:
            return []
        return [
            tables.training_table(trainings),
            *self._chart("training", "Loss and test accuracy over the epochs", training_curves, trainings),
        ]

    def _anchors(self) -> Parts:
        threats = self.runs["compute_threat"]
        if not threats:
            return []
        return [tables.anchors_table(threats), *_pictures(threats, "anchors.png", "Anchors {}, a row for each class")]

    def _environment(self) -> Parts:
        runs = [run for runs in self.runs.values() for run in runs]
        return [tables.environment_table(runs)] if runs else []

    def _chart(self, name: str, caption: str, draw: Callable[[Any], Any], what: Any) -> Parts:
        path = self.folder / f"{name}.png"
        return [Picture(caption, path)] if write_figure(path, lambda: draw(what)) else []


def _given(table: Table | None) -> Parts:
    return [] if table is None else [table]


def _of(runs: Sequence[FinishedRun], most: int) -> str:
    return f" (the first {most} of {len(runs)})" if len(runs) > most else ""


def _pictures(runs: Sequence[FinishedRun], name: str, caption: str) -> Parts:
    with_picture = [run for run in runs if (run.path / name).is_file()]
    return [Picture(caption.format(run.label), run.path / name, run) for run in with_picture[:MOST_PICTURES]]
