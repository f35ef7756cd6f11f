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

from testing.exact_bounds import Pair, UnitBounds, negative
from testing.exact_branches import halves
from testing.exact_dual import Dual, Parts
from testing.exact_network import Value

ROUNDS = 20
FIRST_STEPS, STEPS = 50, 16  # of the ascent for the whole region, and for each part of it
NUMBERS = 1 << 24  # of one kind in all parts that are kept together


class BranchedBounds(UnitBounds):
    """As UnitBounds, for a network of ReLUs alone, with divisions for each unit of open sign.

    Units that depend on the image alone have none: linear programs give the best bounds there are.
    """

    def _pair(self, number: int) -> Pair:
        low, high = super()._pair(number)
        value = self.network.blocks[number].before
        assert value is not None
        before = sum(int(((lower < 0) & (upper > 0)).sum()) for lower, upper in self.before.values())
        finite = numpy.isfinite(low) & numpy.isfinite(high)
        unknown = numpy.flatnonzero((low < 0) & (high > 0) & finite) if before else []
        together = max(1, NUMBERS // (2 * (ROUNDS + 1) * max(1, before)))
        for first in range(0, len(unknown), together):
            if time.monotonic() > self.end:
                break
            some = unknown[first : first + together]
            most = self._divided(value.rows(some), numpy.concatenate([high[some], -low[some]]))
            high[some], low[some] = most[: len(some)], -most[len(some) :]
        return low, high

    def _divided(self, value: Value, most: numpy.ndarray) -> numpy.ndarray:
        """Upper bounds [R] of a value and its negative, given some that are positive; none is worse."""
        with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
            dual = Dual.of(self, _and_negative(value)).measured_in(torch.from_numpy(most))
            units = Units(dual, self.end)
            for _ in range(ROUNDS):
                if time.monotonic() > self.end or not units.divide():
                    break
            return most * units.largest().numpy()


@dataclass
class Units:
    """The parts of each row, which together are the whole region.

    dual   its margins are the rows, in units of a bound that holds: none is above 1
    end    when the search ends, on the monotonic clock
    parts  those of all rows, in any order;  sure: [P] float64, bounds of them that hold
    """

    dual: Dual
    end: float

    def __post_init__(self) -> None:
        self.rows = len(self.dual.constant)
        self.quick = self.dual.to(torch.float32)
        whole = self._ascended(self.dual.whole(torch.arange(self.rows)), FIRST_STEPS)
        self.sure = self._sure(whole, torch.ones_like(self.dual.constant))
        used = (whole.multipliers > 0).any(0)  # the other half-spaces matter for no row
        self.dual, self.parts = self.dual.within(used), replace(whole, multipliers=whole.multipliers[:, used])
        self.quick = self.dual.to(torch.float32)

    def largest(self) -> Tensor:
        """A bound of each row, [R] float64."""
        none = self.sure.new_full((self.rows,), -torch.inf)
        return none.scatter_reduce(0, self.parts.row, self.sure, "amax")

    def divide(self) -> bool:
        """Divide the part of the largest bound of each row that may be positive; False if there is none to divide."""
        most = self.largest()[self.parts.row]
        worst = ((self.sure == most) & (most > 0)).nonzero().flatten()
        one = self.parts.row.new_full((self.rows,), -1)
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
        return self.quick.ascended(parts, steps, 0.0, 1.0, self.end)

    def _sure(self, parts: Parts, known: Tensor) -> Tensor:
        """The bounds of parts, or those known already if these are smaller or the new ones are none (NaN)."""
        with torch.no_grad():
            found = self.dual.bounds(parts)
        return torch.where(found < known, found, known)


def _and_negative(value: Value) -> Value:
    """The rows of a value, and then those of its negative."""
    other = negative(value)
    parts = {block: sparse.vstack([part, other.parts[block]], format="csr") for block, part in value.parts.items()}
    constant = numpy.concatenate([value.constant, other.constant])
    return Value(parts, constant, (len(constant),))
