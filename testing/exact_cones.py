"""Bounds of units that see a part of the image: a mixed-integer program of each one's cone, over the box.

The cone of a unit is what it depends on: in a convolution a few pixels and the few units before it that see them. Its
program is small, and its bounds are the tightest there are over the box, up to GAP, SLACK and NODES. Half-spaces are
left out: the bounds stay valid, and are hardly wider, since a few pixels alone seldom reach the limit of one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy

from testing.exact_bounds import SLACK as ROUNDING
from testing.exact_bounds import Pair, Region, UnitBounds, negative
from testing.exact_network import Block, Network, Value
from testing.exact_program import Program

GAP = 0.01  # relative gap of a unit's bound at which its search ends
NODES = 200  # parts of that search, at most
SLACK = 1e-5  # widening of these bounds, as a part of the unit's largest value: HiGHS meets scaled constraints to 1e-6
PART = 0.5  # largest share of the pixels that a cone may see


class ConeBounds(UnitBounds):
    """As UnitBounds, with two programs for each unit of open sign whose cone sees PART of the image at most.

    Of one layer, the units that may add most to a triangle above their ReLU come first: time often ends before all.
    """

    def _pair(self, number: int) -> Pair:
        low, high = super()._pair(number)
        value, groups = self.network.blocks[number].before, self.network.blocks[number].groups
        if value is None or groups is not None:
            return low, high
        unknown = numpy.flatnonzero(narrow(self.network, number) & (low < 0) & (high > 0))
        height = -low[unknown] * high[unknown] / (high - low)[unknown]
        for unit in unknown[numpy.argsort(-height, kind="stable")]:
            if self.programs < 2 or time.monotonic() > self.end:
                break
            one = cone(self, value.rows([unit]))
            program = Program(one.bounds)
            if program.binaries:  # without any, intervals are exact
                self.programs -= 2
                low[unit], high[unit] = one.tightened(program, low[unit], high[unit], self.end)
        return low, high


@dataclass
class Cone:
    """The network that one unit depends on, with its bounds, and the unit's input as a value of it."""

    bounds: UnitBounds
    value: Value

    def tightened(self, program: Program, low: float, high: float, end: float) -> tuple[float, float]:
        """Bounds of the value, none worse than those given. If it cannot be positive, they are `low` and 0."""
        slack = SLACK * max(-low, high)
        most = self._largest(program, self.value, slack, end)
        if most <= 0:
            return low, 0.0
        least = -self._largest(program, negative(self.value), slack, end)
        room = ROUNDING * (1 + max(-low, high))
        return max(low, least - room), min(high, most + room)

    def _largest(self, program: Program, value: Value, slack: float, end: float) -> float:
        """An upper bound of a value; 0 if it is nowhere above -slack."""
        found = program.largest(value, -slack, max(end - time.monotonic(), 0.01), GAP, NODES).bound
        return 0.0 if found <= -slack else found + slack


def has_cones(network: Network) -> bool:
    """True if there are units whose bounds a program of their cone may tighten."""
    return any(narrow(network, number).any() for number in range(1, len(network.blocks)))


def narrow(network: Network, number: int) -> numpy.ndarray:
    """[size] bool, the ReLUs of a block that depend on units before and see PART of the pixels at most."""
    block = network.blocks[number]
    if block.groups is not None or block.before is None or set(block.before.parts) == {0}:
        return numpy.zeros(block.size, dtype=bool)
    return network.seen(number).mean(1) <= PART


def cone(bounds: UnitBounds, value: Value) -> Cone:
    """The cone of a value of one row."""
    needed = _needed(bounds, value)
    seen = needed.setdefault(0, numpy.zeros(0, dtype=int))
    number = {block: place for place, block in enumerate(sorted(needed))}

    def within(whole: Value, rows: Any) -> Value:
        parts = {number[b]: part[rows][:, needed[b]] for b, part in whole.parts.items() if b in needed}
        return Value(parts, whole.constant[rows], (len(whole.constant[rows]),))

    none = numpy.zeros((0, len(seen)))
    small = Network([Block(len(seen))])
    region = Region(bounds.region.lower[seen], bounds.region.upper[seen], none, numpy.zeros(0))
    found = UnitBounds(small, region, after=[(region.lower, region.upper)])
    for block in sorted(needed)[1:]:
        whole, chosen = bounds.network.blocks[block], needed[block]
        assert whole.before is not None
        rows, groups = chosen, None
        if whole.groups is not None:
            rows, groups = _entries(whole.groups[chosen])
        small.blocks.append(Block(len(chosen), within(whole.before, rows), groups))
        low, high = bounds.before[block]
        found.before[number[block]] = low[rows], high[rows]
        low, high = bounds.after[block]
        found.after.append((low[chosen], high[chosen]))
    return Cone(found, within(value, [0]))


def _needed(bounds: UnitBounds, value: Value) -> dict[int, numpy.ndarray]:
    """Block number -> the variables that a value depends on, but for those that are 0 everywhere."""
    wanted = [value]
    needed: dict[int, numpy.ndarray] = {}
    for number in range(len(bounds.after) - 1, -1, -1):
        low, high = bounds.after[number]
        used = numpy.zeros(len(low), dtype=bool)
        for one in wanted:
            if number in one.parts:
                used[one.parts[number].indices] = True
        chosen = numpy.flatnonzero(used & ((low != 0) | (high != 0)))
        if not len(chosen):
            continue
        needed[number] = chosen
        block = bounds.network.blocks[number]
        if block.before is not None:
            rows = chosen if block.groups is None else _entries(block.groups[chosen])[0]
            wanted.append(block.before.rows(rows))
    return needed


def _entries(groups: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The entries that occur in groups, in order, and the groups in terms of their places (-1 stays)."""
    entries = numpy.unique(groups[groups >= 0])
    return entries, numpy.where(groups >= 0, numpy.searchsorted(entries, groups), -1)
