"""The smallest value of a linear function over {threat <= t} and a box, from below, for many images at once.

With the half-spaces <v_j, d> <= t of a threat and any multipliers l >= 0,

    min <a, d> + b  >=  b - t sum(l) + sum_i min(lower_i g_i, upper_i g_i),      g = a + V^T l.

Whatever found l, the right side holds; it is computed in float64 and rounded down by SLACK. With l = 0 it is the bound
over the box. V is never formed: its products follow from those of the anchors.

Shapes: B images, N anchors, D pixels, P linear functions, each of one image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foundations.errors import UsageError
from foundations.plain_networks import SLACK
from testing.exact import outer
from testing.linear_bounds import Lines
from threat_specification.attacks.search import Cell
from threat_specification.base import BoundThreat
from threat_specification.intersection import BoundIntersection
from threat_specification.norms import BoundLinf
from threat_specification.projected_displacement.bound import BoundProjectedDisplacement
from threat_specification.projected_displacement.warm_start import WarmStart

ROUNDS = 6  # projections that look for multipliers
STEP = 4.0  # their first length: the mean pixel moves this many times as far as its box is wide; each one doubles it
KEPT_BYTES = 1 << 28  # of the anchors in float64
ANCHORS = 1024  # that are float64 at a time, where all are too many


@dataclass
class HalfSpaces:
    """{<v_j, d> <= limit for all j} of one threat, at P images.

    limit   wide enough for every point that could count as inside
    """

    bound: BoundProjectedDisplacement
    limit: float
    _kept: list[tuple[slice, Tensor]] = field(default_factory=list)

    def pull(self, multipliers: Tensor) -> Tensor:
        """sum_j l_j v_j for multipliers [P, N] float64, [P, D] float64."""
        bound = self.bound
        weights = multipliers * bound.inverse.double()
        total = -bound.examples.flatten(1).double() * weights.sum(1, keepdim=True)
        for anchors, rows in self._anchors():
            total.addmm_(weights[:, anchors], rows)
        if bound.mask is not None:
            total *= bound.mask
        if bound.metric is not None:
            basis = bound.metric.basis.double()
            along = torch.bmm(basis, total.unsqueeze(2)).squeeze(2) * bound.metric.shrink
            total -= torch.bmm(along.unsqueeze(1), basis).squeeze(1)
        return total

    def multipliers(self, target: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The projection p of targets [P, D], and its multipliers l >= 0 [P, N]: p = clip(target - V^T l)."""
        bound = self.bound
        shape = bound.examples.shape
        bound.warm = warm = WarmStart.empty(bound) if bound.warm is None else bound.warm
        box = [side.view(shape).float() for side in (lower, upper)]
        point = bound.project(target.view(shape).float(), self.limit, box[0], box[1], method="exact")
        found = torch.zeros_like(bound.inverse, dtype=torch.float64)
        return point.flatten(1).double(), found.scatter_add_(1, warm.anchors, warm.multipliers.clamp_min(0))

    def _anchors(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the anchors, and their pixels in float64."""
        if self._kept:
            yield from self._kept
            return
        matrix = self.bound.matrix
        count, width = matrix.shape
        for first in range(0, count, ANCHORS):
            numbers = torch.arange(first, min(first + ANCHORS, count), device=matrix.device)
            part = (slice(first, first + len(numbers)), matrix.rows(numbers).double())
            if 8 * count * width <= KEPT_BYTES:
                self._kept.append(part)
            yield part


@dataclass(frozen=True)
class Box:
    """The box lower <= d <= upper of perturbations [B, D] float64, with every point that could count as inside."""

    lower: Tensor
    upper: Tensor

    @classmethod
    def of(cls, bound: BoundThreat, cell: Cell) -> Box:
        """The radius, the pixel box, and what l-inf balls of an intersection and frozen backgrounds add."""
        x = bound.examples.double()
        wide = outer(cell.radius)
        lower, upper = bound.bounds((-x).clamp_min(-wide), (1 - x).clamp_max(wide))
        for member, level in _members(bound, cell):
            if type(member) is BoundLinf:
                limit = outer(cell.threshold) * level
                lower, upper = lower.clamp_min(-limit), upper.clamp_max(limit)
        sides = torch.maximum(lower.double(), -x), torch.minimum(upper.double(), 1 - x)
        return cls(*(side.flatten(1) for side in sides))


def half_spaces_of(bound: BoundThreat, cell: Cell) -> list[HalfSpaces]:
    """Those of all members that are no box; raises UsageError for a threat that half-spaces do not describe."""
    found = []
    for member, level in _members(bound, cell):
        if type(member) is BoundProjectedDisplacement:
            found.append(HalfSpaces(member, outer(cell.threshold) * level))
        elif type(member) is not BoundLinf:
            raise UsageError(
                "certificates: expected a threat of half-spaces (PD in any form, Linf or an intersection of these), "
                f"got {type(member).__name__.removeprefix('Bound')}"
            )
    return found


def _members(bound: BoundThreat, cell: Cell) -> Sequence[tuple[BoundThreat, float]]:
    if math.isinf(cell.threshold):
        return []
    return bound.members if isinstance(bound, BoundIntersection) else [(bound, 1.0)]


def dual_value(
    lines: Lines, lower: Tensor, upper: Tensor, spaces: Sequence[HalfSpaces], multipliers: Sequence[Tensor]
) -> Tensor:
    """The right side above for lines of d [P, D] and multipliers [P, N] of each of `spaces`; rounded down, [P]."""
    slope, constant, size = lines.slope, lines.constant, lines.slope.abs()
    for space, l in zip(spaces, multipliers, strict=True):  # noqa: E741
        pulled = space.pull(l)
        slope, size = slope + pulled, size + pulled.abs()
        constant = constant - space.limit * l.sum(1)
    least = torch.minimum(slope * lower, slope * upper).sum(1)
    scale = (size * torch.maximum(lower.abs(), upper.abs())).sum(1) + lines.constant.abs() + constant.abs()
    return constant + least - SLACK * (1 + scale)


def reached(lines: Lines, lower: Tensor, upper: Tensor, bound: BoundThreat, cell: Cell) -> Tensor:
    """Values [P] of lines of d at a point of the set: the box's corner where they are smallest, shrunk into it."""
    corner = torch.where(lines.slope > 0, lower, upper)
    if math.isfinite(cell.threshold):
        box = [side.float().view_as(bound.examples) for side in (corner, lower, upper)]
        corner = bound.scale(box[0], outer(cell.threshold), box[1], box[2]).flatten(1).double()
    return (lines.slope * corner).sum(1) + lines.constant


def ascend(
    lines: Lines, lower: Tensor, upper: Tensor, wanted: Tensor, spaces_at: Callable[[Tensor], list[HalfSpaces]]
) -> Tensor:
    """Lower bounds [P] of lines of d over half-spaces and boxes [P, D], as good as a few projections find them.

    The function's smallest point in the set is what the projection of d - step a tends to, and the multipliers of the
    projection, over the step, are those of the bound (a proximal point method, which ends after finitely many steps
    for linear functions). Several threats take turns, each with the multipliers of the others as they are.

    wanted      [P] what a bound must exceed. A line is done when its own does, or when a point of the set does not
    spaces_at   numbers of lines -> the half-spaces at their images
    """
    left = torch.arange(len(lines.slope), device=lower.device)
    spaces = spaces_at(left)
    zeros = [torch.zeros_like(space.bound.inverse, dtype=torch.float64) for space in spaces]
    best, point = dual_value(lines, lower, upper, spaces, zeros), torch.zeros_like(lines.slope)
    width, steepness = (upper - lower).mean(1, keepdim=True), lines.slope.abs().mean(1, keepdim=True)
    step = STEP * width.clamp_min(1e-12) / steepness.clamp_min(1e-12)
    for _ in range(ROUNDS if spaces else 0):
        part, low, high = lines.take(left), lower[left], upper[left]
        point[left], found = _round(part, low, high, spaces, point[left], step[left])
        best[left] = torch.fmax(best[left], dual_value(part, low, high, spaces, found))
        hopeless = (part.slope * point[left]).sum(1) + part.constant <= wanted[left]
        going = (best[left] <= wanted[left]) & ~(hopeless & (len(spaces) == 1))
        if not bool(going.any()):
            break
        if not bool(going.all()):
            left = left[going]
            spaces = spaces_at(left)
        step = 2 * step
    return best


def _round(
    lines: Lines, lower: Tensor, upper: Tensor, spaces: Sequence[HalfSpaces], point: Tensor, step: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The projections of point - step times the slope, [P, D], and the multipliers of each of `spaces`."""
    pulled, found = [torch.zeros_like(lines.slope) for _ in spaces], []
    for number, space in enumerate(spaces):
        others = sum((each for place, each in enumerate(pulled) if place != number), lines.slope)
        point, multipliers = space.multipliers(point - step * others, lower, upper)
        found.append(multipliers / step)
        if len(spaces) > 1:
            pulled[number] = space.pull(found[number])
    return point, found
