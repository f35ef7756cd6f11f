"""Bounds of the inputs of ReLUs by branch and bound, all units of a block together.

The bounds are dual ones, as those of margins. They get better in rounds: of the parts of each unit the one with the
largest bound is divided, so that the next largest counts. Half-spaces count too.

Shapes: P parts, R rows, two for each unit: its input and the negative of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy
import torch
from scipy import sparse
from torch import Tensor

from testing.exact_ascent import ascended
from testing.exact_bounds import SLACK, Pair, UnitBounds, negative
from testing.exact_branches import can_branch, halves
from testing.exact_dual import Dual, Parts
from testing.exact_network import Block, Network, Value

ROUNDS = 20
FIRST_STEPS, STEPS = 50, 16  # of the ascent for the whole region, and for each part of it
NUMBERS = 1 << 24  # of one kind, such as slopes or pixels, in all parts that are kept together


class BranchedBounds(UnitBounds):
    """As UnitBounds, for a network of ReLUs alone, with divisions for each unit of open sign.

    Units with the largest triangles above their ReLU come first: time may end before all of a block.
    Those that depend on the image alone have no divisions: linear programs give the best bounds there are.
    """

    def _pair(self, number: int) -> Pair:
        low, high = super()._pair(number)
        block = self.network.blocks[number]
        unknown = numpy.flatnonzero((low < 0) & (high > 0) & numpy.isfinite(high - low))
        before = sum(int(((lower < 0) & (upper > 0)).sum()) for lower, upper in self.before.values())
        if not len(unknown) or not before or not _is_deep(block) or time.monotonic() > self.end:
            return low, high
        assert block.before is not None
        height = -low[unknown] * high[unknown] / (high - low)[unknown]
        unknown = unknown[numpy.argsort(-height, kind="stable")]
        most = numpy.concatenate([high[unknown], -low[unknown]])
        with torch.device("cpu"), torch.no_grad():
            value = _and_negative(block.before.rows(unknown))
            dual = Dual.of(self, value).measured_in(torch.from_numpy(most.copy()))
            together = max(1, NUMBERS // (2 * (ROUNDS + 1) * max(before, len(dual.middle), len(dual.rows))))
            for pairs in torch.arange(len(most)).view(2, -1).split(together, 1):
                if time.monotonic() > self.end:
                    break
                rows = pairs.flatten()
                found = most[rows] * self._divided(dual, rows)
                most[rows] = numpy.minimum(most[rows], found + SLACK * (1 + abs(found)))
        high[unknown], low[unknown] = most[: len(unknown)], -most[len(unknown) :]
        return numpy.minimum(low, high), high

    def _divided(self, dual: Dual, rows: Tensor) -> numpy.ndarray:
        """Bounds of some rows of a dual, in their units."""
        units = Units(dual, rows, self.end)
        for _ in range(ROUNDS):
            if time.monotonic() > self.end or not units.divide():
                break
        return units.largest()[rows].numpy()


@dataclass
class Units:
    """The parts of each row, which together are the whole region.

    dual   its margins are the rows, in units of a bound that holds: none is above 1
    rows   those that are worked on
    end    when the search ends, on the monotonic clock
    parts  those of all rows, in any order;  sure: [P] float64, bounds of them that hold
    """

    dual: Dual
    rows: Tensor
    end: float

    def __post_init__(self) -> None:
        self.quick = self.dual.to(torch.float32)
        whole = self._ascended(self.dual.whole(self.rows), FIRST_STEPS)
        self.sure = self._sure(whole, torch.ones(len(self.rows), dtype=torch.float64))
        used = (whole.multipliers > 0).any(0)  # the other half-spaces matter for no row
        self.dual, self.parts = self.dual.within(used), replace(whole, multipliers=whole.multipliers[:, used])
        self.quick = self.dual.to(torch.float32)

    def largest(self) -> Tensor:
        """A bound of each row of the dual, [R] float64; minus infinity for those that are not worked on."""
        none = self.sure.new_full((len(self.dual.constant),), -torch.inf)
        return none.scatter_reduce(0, self.parts.row, self.sure, "amax")

    def divide(self) -> bool:
        """Divide one part of each row: the one with the largest bound, if that is positive. False if there is none."""
        most = self.largest()[self.parts.row]
        worst = ((self.sure == most) & (most > 0)).nonzero().flatten()
        one = self.parts.row.new_full((len(self.dual.constant),), -1)
        one[self.parts.row[worst]] = worst
        one = one[one >= 0]
        one = one[(self.parts.signs[one] == 0).any(1)]
        if not len(one):
            return False
        others = torch.ones_like(self.sure, dtype=torch.bool)
        others[one] = False
        both = self._ascended(halves(self.quick, self.parts.take(one), 0.0), STEPS)
        sure = self._sure(both, self.sure[one].repeat(2))
        self.parts, self.sure = Parts.joined([self.parts.take(others), both]), torch.cat([self.sure[others], sure])
        return True

    def _ascended(self, parts: Parts, steps: int) -> Parts:
        return ascended(self.quick, parts, steps, 0.0, 1.0, self.end)

    def _sure(self, parts: Parts, known: Tensor) -> Tensor:
        """The bounds of parts, or those known already if these are smaller or the new ones are none (NaN)."""
        found = self.dual.bounds(parts)
        return torch.where(found < known, found, known)


def _and_negative(value: Value) -> Value:
    """The rows of a value, and then those of its negative."""
    other = negative(value)
    parts = {block: sparse.vstack([part, other.parts[block]], format="csr") for block, part in value.parts.items()}
    constant = numpy.concatenate([value.constant, other.constant])
    return Value(parts, constant, (len(constant),))


def has_layers(network: Network) -> bool:
    """True for a network of ReLUs alone, of which some depend on others."""
    return can_branch(network) and any(_is_deep(block) for block in network.blocks)


def _is_deep(block: Block) -> bool:
    """True if the inputs of a block depend on units."""
    return block.before is not None and set(block.before.parts) != {0}
