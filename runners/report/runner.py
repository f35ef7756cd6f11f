"""The report runner: one page of tables and figures over all finished runs of a data set, or of all data sets."""

from __future__ import annotations

from collections import Counter
from typing import Any

from foundations.errors import RunError
from foundations.files import write_text
from foundations.program import COMMAND, IN_CHECKOUT
from runners.base import Runner
from runners.commands import command, stored_command
from runners.report.answer import answer
from runners.report.collect import all_finished_runs, data_sets
from runners.report.contents import Contents
from runners.report.desc import KIT, PAGE
from runners.report.highlights import found_in
from runners.report.human_kit import chosen_run, write_kit
from runners.report.labels import tell_apart
from runners.report.page import Section, csv_page, html_page, markdown_page
from runners.report.site import Site

# The runners whose runs are counted in the introduction.
INTRODUCED = {
    "evaluate_threat": "Measurements of threats",
    "test": "evaluations",
    "train": "trained models",
    "compute_threat": "choices of anchors",
}


class Report(Runner):
    """A runner that writes report.html, report.md and report.csv anew at each call, since the finished runs change.

    With --human_kit, it writes the page of a study with people and its pairs too; with --site, pages of claims alone.
    """

    def prepare(self) -> None:
        self.site = Site.of(self.desc, self.environment) if self.desc.site.site else None
        if self.site is not None:
            return
        root, name = self.environment.root_dir, self.desc.dataset_name
        names = [name] if name else data_sets(root)
        every = {name: all_finished_runs(root, name, self.environment.log) for name in names}
        self.runs = {name: found for name, found in every.items() if found}
        for found in self.runs.values():
            tell_apart(found)
        if not self.runs:
            how = f"{COMMAND} train --dataset_name={name or 'mnist_5k'} --model_name=conv"
            raise RunError(
                f"no finished run{name and f' of {name}'} below {root / 'runs'}; make one first, as by {how}"
            )

        measured = self.runs.get(name, {}).get("evaluate_threat", [])
        self.asked = chosen_run(measured, name) if self.desc.kit.human_kit else None

    def run(self) -> dict[str, Any]:
        if self.site is not None:
            if self.environment.is_primary:
                self.site.write()
            return {"site": self.site.counts(), "command": stored_command(self.desc)}
        counts = Counter(dict.fromkeys(INTRODUCED, 0))
        for found in self.runs.values():
            counts.update({runner: len(runs) for runner, runs in found.items()})
        if self.environment.is_primary:
            title = f"Nonisotropic: {self.desc.dataset_name or 'all data sets'}"
            numbers = ", ".join(f"{words}: {counts[runner]}" for runner, words in INTRODUCED.items())
            introduction = (
                f"{numbers}. A number leads to the directory of its run and tells the command that repeats it. Click a "
                "heading to sort, a figure to enlarge it."
            )
            sections = self._sections()
            write_text(self.directory / PAGE, html_page(title, introduction, sections, self._answer()))
            write_text(self.directory / "report.md", markdown_page(title, introduction, sections, self._answer()))
            write_text(self.directory / "report.csv", csv_page(sections))
        kit = {}
        if self.asked is not None and self.environment.is_primary:
            kit = {"kit": write_kit(self.asked, self.directory / KIT)}
        told = {"counts": dict(counts), "page": PAGE, "found": found_in(self.runs)}
        return {**told, "command": command(self.desc, IN_CHECKOUT), **kit}

    def _answer(self) -> list[str]:
        if self.desc.dataset_name:
            return answer(self.runs[self.desc.dataset_name])
        return [f"{name}: {sentence}" for name, found in self.runs.items() for sentence in answer(found)]

    def _sections(self) -> list[Section]:
        if self.desc.dataset_name:
            return Contents(self.runs[self.desc.dataset_name], self.directory.path).sections()
        return [
            section
            for name, found in self.runs.items()
            for section in Contents(found, self.directory / name, f"{name}: ").sections()
        ]
