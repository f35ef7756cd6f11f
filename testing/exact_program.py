"""The mixed-integer program of a small network over a region: the largest value of one logit above another.

Variables: the pixels, each unit, a binary for each unit that can be in two states, and the margin. With inputs s in
[l, u], l < 0 < u, a ReLU's output y and its binary z satisfy

    y >= s,   y <= s - l (1 - z),   0 <= y <= u z            (Tjeng, Xiao, Tedrake 2019)

and a maximum y over candidates s_k, with binaries that add up to 1 and U_k the largest upper bound of the others,

    y >= s_k,   y <= s_k + (U_k - l_k)(1 - z_k).

HiGHS has absolute tolerances, and takes what is smaller for 0. So every variable is divided by its largest value, and
every row by that of its unit: a layer times c and the next one divided by c, the same network, is the same program.

Few half-spaces matter for a margin. The program has those that its relaxation meets, and gets others where its point
is beyond them: what holds without them holds with them, and it takes half as long.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy
from scipy import sparse

from testing.exact_bounds import UnitBounds, after
from testing.exact_network import Value, window

ANY = 1e4  # relative gap at which the first point with a margin clearly above 0 ends the search
EXACT = 1e-4  # relative gap of an optimum
ALL = 2**31 - 1  # nodes of a search that time alone ends: HiGHS's own default
NEAR = 32  # half-spaces added together (any point will do): those that a point is closest to, or farthest beyond
BEYOND = 1e-6  # how far a point may be beyond a half-space: HiGHS's own tolerance
TINY = 1e-9  # HiGHS takes entries of a matrix up to this size as 0
LARGEST = 1e7  # with larger entries its absolute tolerances mean nothing: it proves what is false


@dataclass(frozen=True)
class Solved:
    """The result of a program.

    point   [D] the best image, or None; outside the region where the time was over and the margin is -inf
    margin  its margin in the program
    bound   no image of the region has a larger margin
    """

    point: numpy.ndarray | None
    margin: float
    bound: float


@dataclass
class Program:
    """The constraints of a network's units within their bounds; built once for an image, for all classes."""

    bounds: UnitBounds
    low: list[numpy.ndarray] = field(init=False)  # bounds of the variables, by group
    high: list[numpy.ndarray] = field(init=False)
    _units: list[numpy.ndarray] = field(init=False)  # the largest values of the variables, by group
    _groups: list[dict[int, Any]] = field(default_factory=list)  # rows: group of variables -> matrix
    _least: list[numpy.ndarray] = field(default_factory=list)
    _most: list[numpy.ndarray] = field(default_factory=list)
    _rows: list[numpy.ndarray] = field(default_factory=list)  # what rows are divided by
    _binaries: list[int] = field(default_factory=list)  # groups that are binary

    def __post_init__(self) -> None:
        network = self.bounds.network
        self.low = [low for low, _ in self.bounds.after]
        self.high = [high for _, high in self.bounds.after]
        self._units = [_size(low, high) for low, high in self.bounds.after]
        for number, block in enumerate(network.blocks[1:], start=1):
            assert block.before is not None
            if block.groups is None:
                self._relu(number, block.before, *self.bounds.before[number])
            else:
                self._maximum(number, block.before, block.groups, *self.bounds.before[number])

    @property
    def binaries(self) -> int:
        """The number of units that can be in two states, and of candidates for maxima."""
        return sum(len(self.low[group]) for group in self._binaries)

    def is_in_scale(self, margin: Value) -> bool:
        """False if an entry is so large, or a number is none, that the solver's answers cannot be trusted."""
        numbers = [*self.low, *self.high, *self.bounds.intervals(margin)]
        entries = [self._units_rows.data, self.bounds.region.rows]
        entries.append(self._scaled([margin.parts], [_size(*self.bounds.intervals(margin))]).data)
        sound = all(numpy.isfinite(each).all() for each in (*numbers, *entries))
        return sound and all(abs(each).max(initial=0) <= LARGEST for each in entries)

    def largest(self, margin: Value, at_least: float, seconds: float, gap: float = ANY, nodes: int = ALL) -> Solved:
        """The largest margin in the region, if it is at least `at_least`; then the bound is at most that if it is not.

        margin   one row: a difference of logits
        gap      relative gap between the best point and the bound at which the search ends
        nodes    parts of the search, at most
        """
        low, high = self.bounds.intervals(margin)
        if high[0] < at_least or not self.is_in_scale(margin):
            return Solved(None, -numpy.inf, float(high[0]))
        end, region = time.monotonic() + seconds, self.bounds.region
        asked = {"margin": margin, "least": max(at_least, low[0]), "most": high[0]}
        chosen = numpy.arange(len(region.rows))
        if len(chosen) > NEAR and gap >= ANY:  # an optimum of each round would take longer than one with all of them
            relaxed = self._solved(**asked, chosen=chosen, relaxed=True, time_limit=max(seconds, 0.01))
            chosen = chosen[:0] if relaxed.x is None else self._farthest(relaxed.x)
            if relaxed.status == INFEASIBLE:
                return Solved(None, -numpy.inf, at_least)
        bound = float(high[0])
        while True:
            left = max(end - time.monotonic(), 0.01)
            solved = self._solved(**asked, chosen=chosen, time_limit=left, mip_rel_gap=gap, node_limit=nodes)
            if solved.status == INFEASIBLE:
                return Solved(None, -numpy.inf, at_least)
            if solved.mip_dual_bound is not None and numpy.isfinite(solved.mip_dual_bound):
                bound = min(bound, -float(solved.mip_dual_bound))
            if solved.x is None:
                return Solved(None, -numpy.inf, bound)
            point = solved.x[: len(self.low[0])]  # pixels, whose largest value is 1
            beyond = numpy.setdiff1d(self._farthest(solved.x, BEYOND), chosen)
            if not len(beyond):
                return Solved(point, -float(solved.fun), bound)
            if time.monotonic() > end:  # the point is outside, but the nearest one inside may serve
                return Solved(point, -numpy.inf, bound)
            chosen = numpy.union1d(chosen, beyond)

    def _farthest(self, x: numpy.ndarray, beyond: float = -numpy.inf) -> numpy.ndarray:
        """Numbers of the half-spaces that a point is farthest beyond, those alone that it is beyond by so much."""
        region = self.bounds.region
        distance = region.rows @ x[: len(self.low[0])] - region.limits
        farthest = numpy.argsort(-distance)[:NEAR]
        return farthest[distance[farthest] > beyond]

    def _solved(
        self, margin: Value, least: float, most: float, chosen: numpy.ndarray, relaxed: bool = False, **options: float
    ) -> Any:
        """HiGHS's answer with the half-spaces `chosen`; relaxed: binaries may have any value from 0 to 1."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        region, group, unit = self.bounds.region, len(self.low), _size(*self.bounds.intervals(margin))
        matrices = {block: -part for block, part in margin.parts.items()} | {group: sparse.identity(1, format="csr")}
        rows = [matrices, {0: sparse.csr_matrix(region.rows[chosen])}]
        lows = numpy.concatenate([*self._least, margin.constant, numpy.full(len(chosen), -numpy.inf)])
        highs = numpy.concatenate([*self._most, margin.constant, region.limits[chosen]])
        whole = numpy.concatenate([numpy.full(len(part), place in self._binaries) for place, part in self._sizes()])
        cost = numpy.zeros(len(whole) + 1)
        cost[-1] = -1
        units, divided = numpy.concatenate([*self._units, unit]), [unit, numpy.ones(len(chosen))]
        low = numpy.append(numpy.concatenate(self.low), least) / units
        high = numpy.append(numpy.concatenate(self.high), most) / units
        fixed = sparse.hstack([self._units_rows, sparse.csc_matrix((self._units_rows.shape[0], 1))])
        scaled = sparse.vstack([fixed, self._scaled(rows, divided, unit)], format="csc")
        matrix, room = _without_tiny(scaled, numpy.maximum(abs(low), abs(high)))
        by = numpy.concatenate([*self._rows, *divided])
        with _quiet():
            solved = milp(
                cost,
                constraints=LinearConstraint(matrix, lows / by - room, highs / by + room),
                bounds=Bounds(low, high),
                integrality=None if relaxed else numpy.append(whole, 0),
                options=options,
            )
        return _in_units(solved, units)

    def _sizes(self) -> list[tuple[int, numpy.ndarray]]:
        return list(enumerate(self.low))

    @cached_property
    def _units_rows(self) -> Any:
        """The rows of the units, which all margins have in common."""
        return self._scaled(self._groups, self._rows)

    def _scaled(self, rows: list[dict[int, Any]], divided: list[numpy.ndarray], *more: numpy.ndarray) -> Any:
        """Rows as one sparse matrix over variables in units of their largest values, each row divided.

        more   units of groups after those of the program
        """
        units, full = [*self._units, *more], []
        for row in rows:
            height = next(iter(row.values())).shape[0]
            full.append([row.get(group, sparse.csr_matrix((height, len(unit)))) for group, unit in enumerate(units)])
        if not full:
            return sparse.csc_matrix((0, sum(map(len, units))))
        # A variable that is 0 everywhere has no entries: beside a small unit they would be large.
        used = [(low != 0) | (high != 0) for low, high in zip(self.low, self.high, strict=True)]
        kept = numpy.concatenate([*used, *(numpy.ones(len(unit)) for unit in more)]) * numpy.concatenate(units)
        across = sparse.diags(1 / numpy.concatenate(divided)) @ sparse.bmat(full, format="csc")
        return sparse.csc_matrix(across @ sparse.diags(kept))

    def _add(self, matrices: dict[int, Any], least: Any, most: Any, size: Any = 1.0) -> None:
        """Add rows; `size`: the largest value of what each is about."""
        height = next(iter(matrices.values())).shape[0]
        self._groups.append(matrices)
        for bounds, given in ((self._least, least), (self._most, most), (self._rows, size)):
            bounds.append(numpy.broadcast_to(numpy.asarray(given, dtype=float), height))

    def _binary(self, size: int) -> int:
        """A new group of binaries; returns its number."""
        self.low.append(numpy.zeros(size))
        self.high.append(numpy.ones(size))
        self._units.append(numpy.ones(size))
        self._binaries.append(len(self.low) - 1)
        return self._binaries[-1]

    def _relu(self, number: int, value: Value, low: numpy.ndarray, high: numpy.ndarray) -> None:
        eye = sparse.identity(len(low), format="csr")
        on = numpy.flatnonzero(low >= 0)
        if len(on):
            some = value.rows(on)
            self._add(_with(some, -1, {number: eye[on]}), some.constant, some.constant, _size(low, high)[on])
        unstable = numpy.flatnonzero((low < 0) & (high > 0))
        if not len(unstable):
            return
        some, own = value.rows(unstable), {number: eye[unstable]}
        least, most = low[unstable], high[unstable]
        size, binary = _size(least, most), self._binary(len(unstable))
        self._add(_with(some, -1, own), some.constant, numpy.inf, size)
        self._add(_with(some, -1, own | {binary: sparse.diags(-least)}), -numpy.inf, some.constant - least, size)
        self._add(own | {binary: sparse.diags(-most)}, -numpy.inf, 0, most)

    def _maximum(
        self, number: int, value: Value, groups: numpy.ndarray, low: numpy.ndarray, high: numpy.ndarray
    ) -> None:
        block = self.bounds.network.blocks[number]
        lows, highs = window(groups, low), window(groups, high)
        least, most = after(block, low, high)
        size = _size(least, most)
        # A candidate that is nowhere above what another one is at least cannot be needed; one always stays.
        needed = (highs > least[:, None]) & (groups >= 0)
        needed[numpy.arange(len(groups)), lows.argmax(1)] = True
        unit, place = numpy.nonzero(needed)
        eye = sparse.identity(len(groups), format="csr")
        alone = needed.sum(1)[unit] == 1
        some = value.rows(groups[unit, place])
        # The one candidate is the maximum; of several, none is above it.
        top = numpy.where(alone, some.constant, numpy.inf)
        self._add(_with(some, -1, {number: eye[unit]}), some.constant, top, size[unit])
        unit, place = unit[~alone], place[~alone]
        if not len(unit):
            return
        some = value.rows(groups[unit, place])
        others = numpy.where(needed, highs, -numpy.inf)[unit]
        others[numpy.arange(len(unit)), place] = -numpy.inf
        room = numpy.maximum(others.max(1) - lows[unit, place], 0)
        binary = self._binary(len(unit))
        rows = _with(some, -1, {number: eye[unit], binary: sparse.diags(room)})
        self._add(rows, -numpy.inf, some.constant + room, size[unit])
        chosen = numpy.unique(unit)
        counted = sparse.csr_matrix((numpy.ones(len(unit)), (numpy.searchsorted(chosen, unit), range(len(unit)))))
        self._add({binary: counted}, 1, 1)


INFEASIBLE = 2  # status of milp


def _size(low: numpy.ndarray, high: numpy.ndarray) -> numpy.ndarray:
    """The largest absolute value within bounds; 1 where that is 0."""
    largest = numpy.maximum(abs(low), abs(high))
    return numpy.where(largest > 0, largest, 1.0)


def _in_units(solved: Any, units: numpy.ndarray) -> Any:
    """A result of milp in the units of the network; the margin comes last."""
    if solved.x is not None:
        solved.x, solved.fun = solved.x * units, solved.fun * units[-1]
    if solved.mip_dual_bound is not None:
        solved.mip_dual_bound *= units[-1]
    return solved


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on stdout, where HiGHS writes notes of its own, past Python."""
    sys.stdout.flush()
    library = ctypes.CDLL(None)
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        library.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def _without_tiny(matrix: Any, largest: numpy.ndarray) -> tuple[Any, numpy.ndarray]:
    """A matrix without its TINY entries, and how much these may add to each row, if variables are at most `largest`.

    With that much room, a row holds wherever it held before: what is proven with it is proven.
    """
    left_out = abs(matrix)
    kept, tiny = matrix.copy(), left_out.data <= TINY
    kept.data[tiny] = left_out.data[~tiny] = 0
    kept.eliminate_zeros()
    left_out.eliminate_zeros()
    return kept, left_out @ largest


def _with(value: Value, sign: int, more: dict[int, Any]) -> dict[int, Any]:
    """The matrices of a value times a sign, and those of other groups."""
    return {block: sign * part for block, part in value.parts.items()} | more
