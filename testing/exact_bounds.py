"""Bounds of every unit of a small network over a set of images: intervals, backward linear bounds, linear programs.

A set is a `Region`: a box of pixels and half-spaces. All bounds hold wherever the work on them stops. They are in
float64 and widened by SLACK, far more than its rounding.

Shapes: D pixels, M half-spaces, n rows of a value, m variables of a block.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy

from testing.exact_network import Block, Network, Value, window

SLACK = 1e-9  # relative and absolute widening of each bound
ROWS = 256  # rows of a value that go backwards together
PROGRAMS = 2000  # most programs for the units of one image

Pair = tuple[numpy.ndarray, numpy.ndarray]  # lower and upper bounds, [n] each


@dataclass(frozen=True)
class Region:
    """The images p with lower <= p <= upper and rows @ p <= limits: [D], [D], [M, D], [M]."""

    lower: numpy.ndarray
    upper: numpy.ndarray
    rows: numpy.ndarray
    limits: numpy.ndarray

    def binding(self) -> Region:
        """The same set without the half-spaces that hold the whole box."""
        most = numpy.maximum(self.rows * self.lower, self.rows * self.upper).sum(1)
        kept = most > self.limits
        return Region(self.lower, self.upper, self.rows[kept], self.limits[kept])

    def cuts(self, pixels: numpy.ndarray) -> numpy.ndarray:
        """[n] bool, whether a half-space alone can keep pixels [n, D] bool from what they reach in the box.

        It cannot if they meet its limit wherever they are, once all others give their least.
        """
        least = numpy.minimum(self.rows * self.lower, self.rows * self.upper)
        spread = abs(self.rows) * (self.upper - self.lower)
        return (least.sum(1) + pixels.astype(float) @ spread.T > self.limits).any(1)


@dataclass
class UnitBounds:
    """Bounds of all blocks of a network over a region.

    before   those of a block's inputs, by block number; after   those of its variables
    programs number of programs for single units that are still allowed, here linear ones over the half-spaces; answers
             repeat where this number ends them, not the time
    end      that time, on the monotonic clock
    """

    network: Network
    region: Region
    before: dict[int, Pair] = field(default_factory=dict)
    after: list[Pair] = field(default_factory=list)
    programs: int = 0
    end: float = math.inf

    @property
    def open_units(self) -> int:
        """The number of ReLUs whose sign is not known, and of maxima."""
        pairs = [(self.network.blocks[number].groups, low, high) for number, (low, high) in self.before.items()]
        return sum(
            len(groups) if groups is not None else int(((low < 0) & (high > 0)).sum()) for groups, low, high in pairs
        )

    @classmethod
    def of(cls, network: Network, region: Region, programs: int = 0, end: float = math.inf) -> UnitBounds:
        """The bounds of each block in turn, from those of the blocks before it."""
        bounds = cls(network, region, after=[(region.lower, region.upper)], programs=programs, end=end)
        for number, block in enumerate(network.blocks[1:], start=1):
            bounds.before[number] = bounds._pair(number)
            bounds.after.append(after(block, *bounds.before[number]))
        return bounds

    def _pair(self, number: int) -> Pair:
        """The bounds of a block's inputs, from those of the blocks before."""
        value, is_relu = self.network.blocks[number].before, self.network.blocks[number].groups is None
        assert value is not None
        low, high = self.intervals(value)
        of_image = len(value.parts) == 1 and 0 in value.parts
        if of_image and not self.programs:
            return low, high  # the box alone gives no better ones
        # A ReLU whose sign is known needs no better bound.
        wanted = numpy.flatnonzero((low < 0) & (high > 0)) if is_relu else numpy.arange(len(low))
        above = 0.0 if is_relu else -numpy.inf
        for first in range(0, len(wanted), ROWS):
            chosen = wanted[first : first + ROWS]
            some = value.rows(chosen)
            high[chosen] = numpy.minimum(high[chosen], self.largest(some, above))
            low[chosen] = numpy.maximum(low[chosen], -self.largest(negative(some), above))
        return numpy.minimum(low, high), high

    def intervals(self, value: Value) -> Pair:
        """Bounds from those of the blocks that a value depends on."""
        low, high = value.constant.copy(), value.constant.copy()
        for block, part in value.parts.items():
            up, down = part.maximum(0), part.minimum(0)
            least, most = self.after[block]
            low += up @ least + down @ most
            high += up @ most + down @ least
        return low - SLACK * (1 + abs(low)), high + SLACK * (1 + abs(high))

    def largest(self, value: Value, above: float) -> numpy.ndarray:
        """Upper bounds [n] of a value, by a linear function of the image that is nowhere smaller.

        above   linear programs over the half-spaces improve the bounds over the box that are larger, where a half-space
                can cut what the entry depends on, while any are left
        """
        slope, constant = self.above(value)
        region = self.region
        found = constant + numpy.maximum(slope * region.lower, slope * region.upper).sum(1)
        found = numpy.minimum(found, self.intervals(value)[1])  # neither is always the better one
        wanted = numpy.flatnonzero((found > above) & (self.programs > 0))
        wanted = wanted[region.cuts(slope[wanted] != 0)][: self.programs]
        self.programs -= len(wanted)
        for row in wanted:
            if time.monotonic() > self.end:
                break
            found[row] = min(found[row], constant[row] + over(region, slope[row], self.end).bound)
        return found + SLACK * (1 + abs(found))

    def above(self, value: Value) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Slopes [n, D] and constants [n] of linear functions of the image that are nowhere below the value.

        From the last block to the first, each variable is replaced by a linear bound: by the side of the triangle above
        a ReLU where its factor is positive, by a line below it where it is negative (Zhang et al. 2018).
        """
        factors = {block: part.toarray() for block, part in value.parts.items()}
        constant = value.constant.copy()
        for number in range(len(self.network.blocks) - 1, 0, -1):
            if number not in factors:
                continue
            factor, block = factors.pop(number), self.network.blocks[number]
            assert block.before is not None
            relaxed = _relu_above if block.groups is None else _max_above
            inner, added = relaxed(factor, block, self.before[number])
            constant += added + inner @ block.before.constant
            for earlier, part in block.before.parts.items():
                moved = (part.T @ inner.T).T
                factors[earlier] = factors[earlier] + moved if earlier in factors else moved
        pixels = numpy.zeros((len(constant), len(self.region.lower)))
        return factors.get(0, pixels), constant


def negative(value: Value) -> Value:
    """-value."""
    return Value({block: -part for block, part in value.parts.items()}, -value.constant, value.shape)


def after(block: Block, low: numpy.ndarray, high: numpy.ndarray) -> Pair:
    """Bounds of a block's variables, given those of its inputs."""
    if block.groups is None:
        return numpy.maximum(low, 0), numpy.maximum(high, 0)
    lows, highs = (window(block.groups, values) for values in (low, high))
    return lows.max(1), highs.max(1)


def _relu_above(factor: numpy.ndarray, block: Block, pair: Pair) -> tuple[numpy.ndarray, Any]:
    """Factors of a ReLU block's inputs and constants [n], nowhere below factor @ variables."""
    low, high = pair
    unstable = (low < 0) & (high > 0)
    steep = numpy.where(unstable, high / numpy.where(unstable, high - low, 1), high > 0)
    flat = numpy.where(unstable, high > -low, high > 0)
    up = numpy.maximum(factor, 0)
    return up * steep + numpy.minimum(factor, 0) * flat, up @ numpy.where(unstable, -low * steep, 0)


def _max_above(factor: numpy.ndarray, block: Block, pair: Pair) -> tuple[numpy.ndarray, Any]:
    """The same for max-pooling: the entry that is largest at least, and above it the largest upper bound."""
    assert block.groups is not None
    lows, highs = (window(block.groups, values) for values in pair)
    best = lows.argmax(1)[:, None]
    others = highs.copy()
    numpy.put_along_axis(others, best, -numpy.inf, 1)
    known = others.max(1) <= numpy.take_along_axis(lows, best, 1)[:, 0]  # then it is the maximum
    up, down = numpy.maximum(factor, 0), numpy.minimum(factor, 0)
    inner = numpy.zeros((len(factor), len(pair[0])))
    chosen = numpy.take_along_axis(block.groups, best, 1)[:, 0]
    numpy.add.at(inner.T, chosen, (up * known + down).T)
    return inner, (up * ~known) @ numpy.where(known, 0, highs.max(1))


@dataclass(frozen=True)
class Largest:
    """The largest value in a region.

    bound  no point has a larger one; infinity if none was found
    point  [D] where the solver met it, up to its tolerance
    """

    bound: float = math.inf
    point: numpy.ndarray | None = None


def over(region: Region, slope: numpy.ndarray, end: float) -> Largest:
    """The largest <slope, p> in a region; the bound is larger by rounding alone.

    A linear program finds multipliers l >= 0 of the half-spaces, until `end` on the monotonic clock at most. Its own
    optimum is no bound: the solver may stop where each pixel could still add 1e-7. But whatever found l,
    <slope, p> <= <l, limits> + <slope - rows^T l, p>.
    """
    from scipy.optimize import linprog  # most of a second, which runs without exact answers do not wait for

    bounds = numpy.stack([region.lower, region.upper], 1)
    size = abs(slope).max() or 1.0  # the solver's tolerances are absolute
    limit = {"time_limit": min(max(end - time.monotonic(), 0.01), 1e9)}
    solved = linprog(-slope / size, region.rows, region.limits, bounds=bounds, method="highs", options=limit)
    if solved.status != 0:
        return Largest()
    multipliers = size * numpy.maximum(-solved.ineqlin.marginals, 0)
    rest = slope - multipliers @ region.rows
    bound = multipliers @ region.limits + numpy.maximum(rest * region.lower, rest * region.upper).sum()
    return Largest(float(bound), solved.x)
