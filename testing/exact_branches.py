"""Branch and bound over signs of ReLUs: proves margins negative that the bounds of the whole region leave open.

A part that is not proven is divided by the sign of one ReLU. It is the one, of a few that add most to the bound, whose
two halves have the smallest bounds together. Many parts are worked on at once, the newest first. Bounds are searched
for in float32; only a bound in float64 with the same numbers proves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy
import torch
from torch import Tensor

from testing.exact_ascent import ascended
from testing.exact_bounds import UnitBounds
from testing.exact_dual import Dual, Parts
from testing.exact_network import Network, Value

FIRST_STEPS, STEPS = 100, 24  # of the ascent for the whole region, and for each part of it
TRIED = 8  # ReLUs whose halves are compared
AT_ONCE = 512  # parts that are divided together, at most
NUMBERS = 1 << 17  # and at most so many numbers of one kind
ROOM = 1e-6  # so far below the goal more steps are not needed
LEAST = 0.1  # size of margins that steps of multipliers go by, at least
ENTRIES = 1 << 24  # of all matrices that a network may need; there is no point in larger ones


def can_branch(network: Network) -> bool:
    """True if all units are ReLUs, and few enough."""
    blocks = network.blocks
    sizes = numpy.array([block.size for block in blocks])
    # In terms of open ReLUs, a block may depend on all blocks before it.
    entries = (sizes * (numpy.cumsum(sizes) - sizes)).sum()
    return len(blocks) > 1 and all(block.groups is None for block in blocks) and entries <= ENTRIES


@dataclass(frozen=True)
class Branched:
    """The result of a search.

    most   [n] upper bounds of margins: `goal` for those that are proven to be below it, else those given
    point  [D] if a margin meets the goal, by the network in float64: where it is largest in its part, up to 1e-7
    """

    most: numpy.ndarray
    point: numpy.ndarray | None = None


def branched(bounds: UnitBounds, margins: Value, most: numpy.ndarray, goal: float, end: float) -> Branched:
    """Prove margins to be below a goal, or find a point that meets it; where time ends before that, neither.

    most   [n] upper bounds so far; those below `goal` stay
    end    when the search ends, on the monotonic clock
    """
    rows = numpy.flatnonzero(most >= goal)
    size = float(most.max()) - goal
    if not len(rows) or not 0 < size < numpy.inf:
        return Branched(most)
    with torch.device("cpu"), torch.no_grad():
        dual = Dual.of(bounds, margins).measured_in(torch.tensor(size).double())
        search = Branches(dual, goal / size, end)
        left = search.left(torch.from_numpy(rows))
    found = most.copy()
    found[numpy.setdiff1d(rows, left.numpy())] = goal
    return Branched(found, search.point)


@dataclass
class Branches:
    """The parts of a region in which a margin may still reach a goal.

    dual    in float64; margins are at most about 1 above the goal
    end     as in `branched`
    size    how far above the goal margins may be; the steps of multipliers go by it
    stack   parts that wait, the newest last
    stuck   True once a part without any open ReLU is left: its margin meets the goal, at `point`, if time did not end
    """

    dual: Dual
    goal: float
    end: float
    size: float = 1.0
    stack: list[Parts] = field(default_factory=list)
    stuck: bool = False
    point: numpy.ndarray | None = None

    def __post_init__(self) -> None:
        self.quick, self.complete = self.dual.to(torch.float32), self.dual

    def left(self, rows: Tensor) -> Tensor:
        """The margins, of these, that are not proven to be below the goal: none, if there was time enough."""
        parts = self._proven(self._ascended(self.dual.whole(rows), FIRST_STEPS))
        if not bool(parts.bound.isfinite().all()):
            return rows
        self._push(self._with_few_half_spaces(parts))
        while self.stack and not self.stuck and time.monotonic() < self.end:
            self._push(self._proven(self._ascended(halves(self.quick, self._popped(), self.goal), STEPS)))
        return torch.cat([rows[:0], *(part.row for part in self.stack)]).unique()

    def _with_few_half_spaces(self, parts: Parts) -> Parts:
        """From here on with those half-spaces alone that matter for some bound of the whole region."""
        used = (parts.multipliers > 0).any(0)
        self.dual = self.dual.within(used)
        self.quick = self.dual.to(torch.float32)
        self.size = max(LEAST, float(parts.bound.max()) - self.goal) if len(parts) else 1.0
        return replace(parts, multipliers=parts.multipliers[:, used])

    def _push(self, parts: Parts) -> None:
        if len(parts):
            self.stack.append(parts)

    def _popped(self) -> Parts:
        """The newest parts, as many as are worked on at once."""
        wanted = max(1, min(AT_ONCE, NUMBERS // max(1, self.dual.open_units)))
        taken: list[Parts] = []
        while self.stack and wanted > 0:
            parts = self.stack.pop()
            self._push(parts.take(slice(0, -wanted)))
            taken.append(parts.take(slice(-wanted, None)))
            wanted -= len(taken[-1])
        return Parts.joined(taken)

    def _ascended(self, parts: Parts, steps: int) -> Parts:
        return ascended(self.quick, parts, steps, self.goal - ROOM, self.size, self.end)

    def _proven(self, parts: Parts) -> Parts:
        """The parts that are left: those whose bound is not below the goal, in float64 too."""
        sure = parts.bound < self.goal
        sure[sure.clone()] = self.dual.bounds(parts.take(sure)) < self.goal
        given = ~sure & (parts.signs != 0).all(1)
        for number in given.nonzero().flatten().tolist():
            if self.stuck or time.monotonic() > self.end:
                break
            found = self.complete.exact(parts, number, self.end)
            sure[number] = bool(found.bound < self.goal)
            if not sure[number]:
                self.stuck, self.point = True, found.point
        return parts.take(~sure)


def halves(dual: Dual, parts: Parts, goal: float) -> Parts:
    """Both halves of each part, divided by one ReLU: [2 P], those where its input is not negative first.

    goal   a bound below it is as good as one that meets it
    """
    unit = _divided_by(dual, parts, goal)[:, None]
    return Parts.joined([replace(parts, signs=parts.signs.scatter(1, unit, sign)) for sign in (1, -1)])


def _divided_by(dual: Dual, parts: Parts, goal: float) -> Tensor:
    """The ReLU that each part is divided by, [P]."""
    gaps = dual.gaps(parts)
    several = gaps.topk(min(TRIED, gaps.shape[1]), 1).indices
    tried = parts.take(torch.arange(len(parts)).repeat_interleave(several.shape[1]))
    unit, both = several.view(-1, 1), gaps.new_zeros(several.shape)
    for sign in (1, -1):
        half = replace(tried, signs=tried.signs.scatter(1, unit, sign))
        both += dual.bounds(half).clamp_min(goal).view(both.shape)
    both[gaps.gather(1, several) < 0] = torch.inf
    return several.gather(1, both.argmin(1, keepdim=True))[:, 0]
