"""The figures of a pass, written as they come: JSON for machines, a Markdown table for each section."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from foundations.files import write_text
from foundations.results import markdown_table

NAME = "RESULTS_GPU"


@dataclass(frozen=True)
class Figure:
    """A measurement: what was measured, its value and unit, and the value aimed at, if there is one."""

    section: str
    case: str
    value: Any
    unit: str = ""
    aim: str = ""

    def row(self) -> list[str]:
        value = str(self.value)
        if isinstance(self.value, float):
            value = f"{self.value:.0f}" if abs(self.value) >= 1000 else f"{self.value:.3g}"
        return [self.case.replace("|", "/"), f"{value} {self.unit}".strip().replace("|", "/"), self.aim or "-"]


@dataclass
class Record:
    """All figures of a pass.

    titles    section -> its title, in the order of the tables
    failed    section -> the error that ended it
    skipped   section -> why it was left out
    seconds   section -> how long it took
    """

    folder: Path
    device: str
    torch: str
    words: str
    titles: dict[str, str]
    figures: list[Figure] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    date: str = field(default_factory=lambda: str(datetime.date.today()))

    def tell(self, figure: Figure) -> None:
        """Print a figure, and write the JSON anew: what was measured is kept if a later section never ends."""
        self.figures.append(figure)
        print(f"{figure.section}: {': '.join(figure.row()[:2])}", flush=True)
        self.write()

    def write(self) -> None:
        found = asdict(self) | {"folder": None, "titles": None}
        content = {key: value for key, value in found.items() if value is not None}
        write_text(self.folder / f"{NAME}.json", json.dumps(content, indent=1, default=str) + "\n")

    def write_table(self) -> Path:
        """Write the Markdown, and return its path."""
        path = self.folder / f"{NAME}.md"
        write_text(path, self.markdown())
        return path

    def markdown(self) -> str:
        parts = [
            "# Measurements on a device",
            f"{self.device}, torch {self.torch}, {self.date}, {sum(self.seconds.values()):.0f} s: "
            f"`python -m benchmarks.gpu{self.words}`. A ratio compares two things timed in turns in this run.",
        ]
        for section, title in self.titles.items():
            rows = [figure.row() for figure in self.figures if figure.section == section]
            told = {"failed": self.failed.get(section), "left out": self.skipped.get(section)}
            notes = [f"**{what}**: {why}" for what, why in told.items() if why]
            if rows or notes:
                parts += [f"## {title}", *notes]
                parts += [markdown_table(["case", "measured", "aim"], rows)] if rows else []
        return "\n\n".join(parts) + "\n"
