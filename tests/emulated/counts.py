"""Counts of what an emulated device is given to do, and the lines of the project that make the host wait for it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
EMULATION = {str(path) for path in Path(__file__).resolve().parent.glob("*.py")}


@dataclass
class Counts:
    """Counts of the work that a GPU would have been given.

    kernels   name of an operation -> how often it was launched
    waits     reason -> how often the host waited for the device
    places    file:line of the project and reason -> the same, to find them
    """

    kernels: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)

    @property
    def launched(self) -> int:
        """The number of operations launched."""
        return self.kernels.total()

    @property
    def waited(self) -> int:
        """The number of times the host waited."""
        return self.waits.total()

    def wait(self, reason: str) -> None:
        """Note that the host waits."""
        self.waits[reason] += 1
        self.places[f"{_place()} {reason}"] += 1

    def reset(self) -> None:
        """Begin again at 0."""
        for counter in (self.kernels, self.waits, self.places):
            counter.clear()


def _place() -> str:
    """The innermost line of the project that is being run."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = _name_in_project(frame.f_code.co_filename)
        if name:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@cache
def _name_in_project(file: str) -> str:
    """The path in the project; "" for a library's file, and for the emulation's own."""
    path = Path(file)
    ours = path.is_relative_to(PROJECT) and "site-packages" not in path.parts and file not in EMULATION
    return str(path.relative_to(PROJECT)) if ours else ""
