"""The dual of the projection onto {PD <= threshold} and per-pixel bounds, on a working set of anchors.

Newton's step, its line search, and the last hair into the set. Knows rows v_j, not where they come from.

Shapes: R examples being worked on, K anchors in their working sets, D = C*H*W.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from threat_specification.projected_displacement.buffers import Buffers
from threat_specification.projected_displacement.nnls import nnls

MARGIN = 7e-8  # l2 distance kept from the half-spaces: four standard deviations of what rounding x + p to float32 moves
VANISHED = 1e-5  # |p| / |d| below which p counts as 0; |d - p| of a cone's nearest point p then differs by 5e-11 of it
ACCEPT = 1e-6  # relative excess over the threshold that counts as feasible
NOISE = 1e-6  # float32 error of <d, v>, relative to |d| |v|
KKT = 2e-6  # residual at which Newton stops, relative to the distance moved
RIDGE = (
    2e-7  # of |v|^2, for each anchor in the working set: more than float32 can make a curvature's eigenvalues negative
)
REPAIRS = 8
TILES = {"cpu": 1 << 20}  # bytes of float64 rows at a time: there they stay in the cache until they are multiplied
TILE = 1 << 28  # on other devices
WIDEN = 1.0  # times the residual per pixel
FLAT = 0.25  # of the slope at the start: where a line search stops
TRIES = 20


@dataclass
class Work:
    """Examples being projected: p = clip(target - l V), a maximiser of the dual over l >= 0 when it is done."""

    numbers: Tensor  # [R] which examples of the bound threat
    target: Tensor  # [R, D]
    lower: Tensor
    upper: Tensor
    anchors: Tensor  # [R, K] distinct in a row
    rows: Tensor  # [R, K, D] V
    norms: Tensor  # [R, K] |v|, float64, 1 for rows of zeros
    l: Tensor  # [R, K] multipliers, float64  # noqa: E741
    shifted: Tensor  # [R, D] target - l V
    point: Tensor  # [R, D] clip(shifted)
    excess: Tensor  # [R, K] V point - threshold, float64: the gradient of the dual

    def take(self, index: Tensor) -> Work:
        return Work(*(getattr(self, field.name)[index] for field in fields(self)))


def inner(rows: Tensor, points: Tensor) -> Tensor:
    """<v_k, p>, [R, K]. The points stand on the left: summing is then done in blocks, faster and with fewer errors."""
    return torch.bmm(points.unsqueeze(1), rows.transpose(1, 2)).squeeze(1)


def exact_inner(rows: Tensor, points: Tensor, buffers: Buffers) -> Tensor:
    """<v_k, p> in float64, [R, K]."""
    count, width, pixels = rows.shape
    step = max(1, TILES.get(rows.device.type, TILE) // (8 * width * pixels))
    tile = buffers.get("exact", (min(step, count), width, pixels), torch.float64, rows.device)
    found = rows.new_empty(count, width, dtype=torch.float64)
    for start in range(0, count, step):
        part = rows[start : start + step]
        found[start : start + step] = inner(tile[: len(part)].copy_(part), points[start : start + step].double())
    return found


def curvature(work: Work, reach: Tensor) -> Tensor:
    """V diag(inside the bounds widened by reach) V^T plus a ridge, [R, K, K] float64."""
    reach = reach.float().unsqueeze(1)
    inside = (work.shifted > work.lower - reach) & (work.shifted < work.upper + reach) & (work.lower < work.upper)
    masked = work.rows if bool(inside.all()) else work.rows * inside.unsqueeze(1)
    hessian = torch.bmm(masked, work.rows.transpose(1, 2)).double()
    # Products with it and its Cholesky factor, made of one triangle, must agree to more digits than float32 has.
    return (hessian + hessian.transpose(1, 2)).mul_(0.5) + ridge(work)


def ridge(work: Work) -> Tensor:
    return torch.diag_embed(RIDGE * work.norms.shape[1] * work.norms.square())


def residual_of(work: Work) -> Tensor:
    """Violation of the KKT conditions within the working set, as an l2 distance, [R]."""
    distance = work.excess / work.norms
    return torch.where(work.l > 0, distance.abs(), distance.clamp_min(0)).amax(1)


def newton_step(work: Work, residual: Tensor, threshold: float) -> None:
    """One step uphill on the dual: towards the maximum of its quadratic model over l >= 0, as far as it rises."""
    # Pixels that the step is going to free count as free already; without them the model sees no end to the slope.
    # The widening vanishes with the residual, which leaves Newton's convergence as it is.
    hessian = curvature(work, WIDEN * residual / work.target.shape[1] ** 0.5)
    linear = work.excess + torch.bmm(hessian, work.l.unsqueeze(2)).squeeze(2)
    step = nnls(hessian, linear, work.l) - work.l
    along = torch.bmm(step.float().unsqueeze(1), work.rows).squeeze(1)
    longest = torch.where(step < 0, -work.l / step, torch.inf).amin(1).clamp_min(1)
    length = _line_search(work, step, along, longest, threshold)
    work.l = (work.l + length.unsqueeze(1) * step).clamp_min(0)
    work.shifted = work.target - torch.bmm(work.l.float().unsqueeze(1), work.rows).squeeze(1)
    work.point = torch.minimum(torch.maximum(work.shifted, work.lower), work.upper)
    work.excess = inner(work.rows, work.point).double() - threshold


def _line_search(work: Work, step: Tensor, along: Tensor, longest: Tensor, threshold: float) -> Tensor:
    """Where the slope of the dual along the step has nearly vanished, [R] float64 in (0, longest].

    The slope is piecewise linear and falls; its zero is bracketed and approached by Newton's method. Costs O(D) a try.
    """
    length = torch.ones_like(longest)
    start = (work.excess * step).sum(1)
    cost = threshold * step.sum(1)
    near, far = torch.zeros_like(length), torch.full_like(length, torch.inf)
    noise = NOISE * along.norm(dim=1) * work.point.norm(dim=1)
    live = torch.arange(len(length), device=length.device)
    for _ in range(TRIES):
        shifted = work.shifted[live] - length[live].float().unsqueeze(1) * along[live]
        point = torch.minimum(torch.maximum(shifted, work.lower[live]), work.upper[live])
        slope = (along[live] * point).sum(1).double() - cost[live]
        at_end = (slope > 0) & (length[live] >= longest[live])
        going = (slope.abs() > FLAT * start[live] + noise[live]) & ~at_end
        if not bool(going.any()):
            break
        inside = point == shifted
        live, slope, inside = live[going], slope[going], inside[going]
        bend = (along[live].square() * inside).sum(1).double()
        here = length[live]
        near[live] = torch.where(slope > 0, here, near[live])
        far[live] = torch.where(slope > 0, far[live], here)
        guess = here + slope / bend.clamp_min(1e-300)
        low, high = near[live], far[live]
        middle = torch.where(high.isinf(), 4 * low, torch.where(low > 0, (low * high).sqrt(), 0.1 * high))
        length[live] = torch.where((guess > low) & (guess < high) & (guess < 10 * here), guess, middle)
        length[live] = torch.minimum(length[live], longest[live])
    return length


def is_converged(work: Work) -> Tensor:
    """Whether the working set's own conditions hold, [R]."""
    moved = (work.point - work.target).norm(dim=1)
    return residual_of(work) <= KKT * moved + NOISE * work.point.norm(dim=1)


def is_vanished(work: Work) -> Tensor:
    """Points that count as 0, [R]: at threshold 0 all half-spaces meet there, and float32 cannot tell which bind."""
    return work.point.norm(dim=1) <= VANISHED * work.target.norm(dim=1)


def settle(work: Work, hessian: Tensor, threshold: float, buffers: Buffers) -> Tensor:
    """Make the points feasible as float32 numbers, judged in float64; True where that worked, [R].

    The binding half-spaces are moved inwards by a margin, more where that does not suffice, and Newton's step for
    the rest is taken from the rounded point, so that rounding enters once. Pixels at their bounds stay there.
    A step's effect is known to far more digits than its end: two points this near have an exact difference, and what
    float32 loses in its products is 1e-7 of a displacement that is itself about 1e-6 of the threshold.

    hessian  [R, K, K] float64, the curvature at the points
    """
    limit = threshold * (1 + 0.5 * ACCEPT)
    margin = MARGIN * (1 + 4 * work.point.square().mean(1, keepdim=True).sqrt()) * work.norms
    inside = (work.point > work.lower) & (work.point < work.upper)
    length = work.point.norm(dim=1)
    at_zero = length == 0
    good = torch.zeros_like(at_zero)
    beyond = exact_inner(work.rows, work.point, buffers) - threshold
    for repair in range(REPAIRS):
        good = (beyond <= limit - threshold).all(1)
        # The first step also takes back what Newton left. After it a part of the margin must be there, for which
        # a degenerate corner may have no room.
        kept = (0.5 * margin - 0.5 * ACCEPT * threshold).clamp_min(0) if repair < 2 else 0
        done = good & (((beyond + kept <= 0.25 * ACCEPT * threshold).all(1) & bool(repair)) | at_zero)
        if bool(done.all()):
            break
        goal = beyond + (4.0**repair * margin - 0.5 * ACCEPT * threshold).clamp_min(0)
        linear = goal + torch.bmm(hessian, work.l.unsqueeze(2)).squeeze(2)
        step = nnls(hessian, linear, work.l) - work.l
        work.l = work.l + step
        shift = torch.bmm(step.float().unsqueeze(1), work.rows).squeeze(1)
        moved = torch.minimum(torch.maximum(work.point - shift, work.lower), work.upper)
        moved = torch.where(inside & ~done.unsqueeze(1), moved, work.point)
        beyond += inner(work.rows, moved - work.point)
        work.point = moved
    if not bool(good.all()):
        good = _shrink(work, threshold, limit, buffers)
        nothing = ~good & (length <= 10 * VANISHED * work.target.norm(dim=1))
        work.point[nothing] = 0
        good |= nothing
    return good


def _shrink(work: Work, threshold: float, limit: float, buffers: Buffers) -> Tensor:
    """Shrink towards 0, where every threshold holds, the points that are outside; True where they are inside now."""
    value = exact_inner(work.rows, work.point, buffers)
    worst = value.amax(1)
    factor = torch.where(worst > limit, threshold / worst.clamp_min(1e-300), 1.0)
    work.point = work.point * factor.float().unsqueeze(1)
    value = exact_inner(work.rows, work.point, buffers)
    return (value <= limit).all(1) & (factor > 1 - 1e-3)
