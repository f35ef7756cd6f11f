"""Small charts on a sheet, drawn as lines and texts of the sheet's one axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
from matplotlib.ticker import MaxNLocator

from runners.sheets import POINT

CELL = (1.08, 1.06)  # inches
LEFT, RIGHT, TOP, BOTTOM = 0.0, 0.96, 0.3, 1.03  # of the lines within a cell
TICK = 3.5 * POINT


@dataclass(frozen=True)
class Panel:
    """Values against severities, in a cell of a sheet that begins at a corner.

    levels   severities that are marked below
    most     value at the upper end; the lower end is 0
    """

    corner: tuple[float, float]
    levels: numpy.ndarray
    most: float

    def points(self, severities: numpy.ndarray, values: numpy.ndarray) -> numpy.ndarray:
        """Places [n, 2] on the sheet, in inches from its upper left corner."""
        low, high = self._ends()
        across = LEFT + (RIGHT - LEFT) * (severities - low) / (high - low)
        down = BOTTOM - (BOTTOM - TOP) * values / self.most
        return numpy.stack((across, down), axis=1) + self.corner

    def frame(self) -> list[numpy.ndarray]:
        """Lines at the left and below, with their ticks."""
        corners = numpy.array([(LEFT, TOP), (LEFT, BOTTOM), (RIGHT, BOTTOM)]) + self.corner
        below, left = numpy.array([(0, 0), (0, TICK)]), numpy.array([(0, 0), (-TICK, 0)])
        return [corners, *(place + below for place in self._below()), *(place + left for place in self._beside()[1])]

    def half(self) -> numpy.ndarray:
        """A line across at 0.5."""
        return self.points(self._ends(), numpy.array([0.5, 0.5]))

    def write(self, axes: Any, title: str, across: bool, up: bool) -> None:
        """Write the title; with `across` the severities below, with `up` the values at the left."""
        centre, top = (LEFT + RIGHT) / 2 + self.corner[0], TOP + self.corner[1]
        axes.text(centre, top - 2 * POINT, title, fontsize=6.5, ha="center", va="bottom")
        if across:
            for level, (x, y) in zip(self.levels, self._below(), strict=True):
                axes.text(x, y + 2 * TICK, f"{level:g}", fontsize=6, ha="center", va="top")
        if up:
            for value, (x, y) in zip(*self._beside(), strict=True):
                axes.text(x - 2 * TICK, y, f"{value:g}", fontsize=6, ha="right", va="center")

    def _ends(self) -> numpy.ndarray:
        room = 0.05 * (self.levels[-1] - self.levels[0]) or 0.05
        return numpy.array([self.levels[0] - room, self.levels[-1] + room])

    def _below(self) -> numpy.ndarray:
        return self.points(self.levels, numpy.zeros(len(self.levels)))

    def _beside(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        values = numpy.asarray(MaxNLocator(3, steps=[1, 2, 5, 10]).tick_values(0, self.most))
        values = values[(values >= 0) & (values <= self.most)]
        return values, self.points(numpy.full(len(values), self._ends()[0]), values)
