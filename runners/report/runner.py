"""report: one page of tables and pictures over all finished runs of a data set, or of all data sets."""

from __future__ import annotations

from typing import Any

from foundations.errors import RunError
from foundations.files import write_text
from runners.base import Runner
from runners.commands import command
from runners.report.collect import RUNNERS, data_sets, finished_runs
from runners.report.contents import Contents
from runners.report.page import Section, csv_page, html_page, markdown_page


class Report(Runner):
    """Writes report.html, report.md and report.csv, anew at each call: what is finished changes."""

    def prepare(self) -> None:
        root, name = self.environment.root_dir, self.desc.dataset_name
        names = [name] if name else data_sets(root)
        self.runs = {
            name: found
            for name in names
            if any(
                (
                    found := {runner: finished_runs(root, name, runner, self.environment.log) for runner in RUNNERS}
                ).values()
            )
        }
        if not self.runs:
            how = f"python nonisotropic.py train --dataset_name={name or 'mnist_5k'} --model_name=conv"
            raise RunError(
                f"no finished run{name and f' of {name}'} below {root / 'runs'}; make one first, as by {how}"
            )

    def run(self) -> dict[str, Any]:
        counts = {runner: sum(len(found[runner]) for found in self.runs.values()) for runner in RUNNERS}
        if self.environment.is_primary:
            title = f"Nonisotropic: {self.desc.dataset_name or 'all data sets'}"
            introduction = (
                f"Measurements of threats: {counts['evaluate_threat']}, evaluations: {counts['test']}, trained models: "
                f"{counts['train']}, choices of anchors: {counts['compute_threat']}. A number leads to the directory "
                "of its run and tells the command that repeats it. Click a heading to sort, a figure to enlarge it."
            )
            sections = self._sections()
            write_text(self.directory / "report.html", html_page(title, introduction, sections))
            write_text(self.directory / "report.md", markdown_page(title, introduction, sections))
            write_text(self.directory / "report.csv", csv_page(sections))
        return {"counts": counts, "page": "report.html", "command": command(self.desc)}

    def _sections(self) -> list[Section]:
        if self.desc.dataset_name:
            return Contents(self.runs[self.desc.dataset_name], self.directory.path).sections()
        return [
            section
            for name, found in self.runs.items()
            for section in Contents(found, self.directory / name, f"{name}: ").sections()
        ]
