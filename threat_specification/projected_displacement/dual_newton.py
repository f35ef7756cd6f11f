"""The dual of the projection onto {PD <= threshold} and per-pixel bounds, on a working set of anchors.

It contains the Newton step, its line search, and the last small moves that make points feasible. It works on given rows
v_j, whatever their origin.

Shapes: R examples in progress, K anchors in the working set of each, D = C*H*W.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from threat_specification.projected_displacement.buffers import Buffers
from threat_specification.projected_displacement.nnls import nnls
from threat_specification.projected_displacement.pace import pace_of

# l2 distance to keep from a half-space's boundary: four standard deviations of the error of x + p rounded to float32.
MARGIN = 7e-8
SETTLED = 8 * MARGIN  # l2 distance that `settle` may move a point before all anchors are checked again
VANISHED = 1e-5  # |p| / |d| below which p counts as 0; for a cone this changes |d - p| by a factor of only 1 + 5e-11
ACCEPT = 1e-6  # relative excess over the threshold that counts as feasible
NOISE = 1e-6  # float32 error of <d, v>, relative to |d| |v|
KKT = 2e-6  # residual of the KKT conditions at which Newton stops, relative to the distance moved
RIDGE = (
    2e-7  # times |v|^2 and the size of the working set: larger than the negative eigenvalues that float32 errors cause
)
REPAIRS = 8  # most moves of `settle`
WIDEN = 1.0  # widening of the bounds in `newton_step`, in units of the residual per pixel
FLAT = 0.25  # a line search stops at this fraction of the slope at its start
TRIES = 20  # most points of a line search


@dataclass
class Work:
    """Examples being projected: p = clip(target - l V), where at the end l maximises the dual over l >= 0."""

    numbers: Tensor  # [R] numbers of the examples in the bound threat
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

    def take(self, mask: Tensor) -> Work:
        """The examples of a mask [R]."""
        index = mask.nonzero().squeeze(1)  # once: each index with a mask would make the host wait for a device
        return Work(*(getattr(self, field.name)[index] for field in fields(self)))

    def move(self, threshold: float) -> None:
        """Recompute the point and the excess for the multipliers."""
        self.shifted = self.target - torch.bmm(self.l.float().unsqueeze(1), self.rows).squeeze(1)
        self.point = torch.minimum(torch.maximum(self.shifted, self.lower), self.upper)
        self.excess = inner(self.rows, self.point).double() - threshold


def inner(rows: Tensor, points: Tensor) -> Tensor:
    """<v_k, p>, [R, K]; with the points as left factor, sums are computed in blocks, which is faster and more exact."""
    return torch.bmm(points.unsqueeze(1), rows.transpose(1, 2)).squeeze(1)


def exact_inner(rows: Tensor, points: Tensor, buffers: Buffers) -> Tensor:
    """<v_k, p> in float64, [R, K]."""
    count, width, pixels = rows.shape
    step = max(1, pace_of(rows.device).tile_bytes // (8 * width * pixels))
    tile = buffers.get("exact", (min(step, count), width, pixels), torch.float64, rows.device)
    found = rows.new_empty(count, width, dtype=torch.float64)
    for start in range(0, count, step):
        part = rows[start : start + step]
        found[start : start + step] = inner(tile[: len(part)].copy_(part), points[start : start + step].double())
    return found


def curvature(work: Work, reach: Tensor) -> Tensor:
    """V M V^T plus a ridge, [R, K, K] float64; M selects the pixels inside the bounds widened by `reach` [R]."""
    reach = reach.float().unsqueeze(1)
    inside = (work.shifted > work.lower - reach) & (work.shifted < work.upper + reach) & (work.lower < work.upper)
    whole = not pace_of(work.rows.device).fixed_shapes and bool(inside.all())
    masked = work.rows if whole else work.rows * inside.unsqueeze(1)
    hessian = torch.bmm(masked, work.rows.transpose(1, 2)).double()
    # Make it exactly symmetric: products with it must agree with its Cholesky factor, which is computed from one
    # triangle, to more digits than float32 has.
    return (hessian + hessian.transpose(1, 2)).mul_(0.5) + ridge(work)


def ridge(work: Work) -> Tensor:
    return torch.diag_embed(RIDGE * work.norms.shape[1] * work.norms.square())


def residual_of(work: Work) -> Tensor:
    """Largest violation of the KKT conditions within the working set, as an l2 distance, [R]."""
    distance = work.excess / work.norms
    return torch.where(work.l > 0, distance.abs(), distance.clamp_min(0)).amax(1)


def newton_step(work: Work, residual: Tensor, threshold: float) -> None:
    """Take one ascent step on the dual, with a line search towards the maximum of its quadratic model over l >= 0."""
    # Pixels that the step will probably free already count as free; without them the model has too little curvature and
    # its maximum is too far away. The widening vanishes with the residual, so Newton's rate of convergence is kept.
    hessian = curvature(work, WIDEN * residual / work.target.shape[1] ** 0.5)
    linear = work.excess + torch.bmm(hessian, work.l.unsqueeze(2)).squeeze(2)
    step = nnls(hessian, linear, work.l) - work.l
    along = torch.bmm(step.float().unsqueeze(1), work.rows).squeeze(1)
    longest = torch.where(step < 0, -work.l / step, torch.inf).amin(1).clamp_min(1)
    length = _line_search(work, step, along, longest, threshold)
    work.l = (work.l + length.unsqueeze(1) * step).clamp_min(0)
    work.move(threshold)


def _line_search(work: Work, step: Tensor, along: Tensor, longest: Tensor, threshold: float) -> Tensor:
    """Step length at which the slope of the dual along the step is nearly 0, [R] float64 in (0, longest].

    The slope is piecewise linear and decreasing. Newton's method with a bracket finds its zero; each try costs O(D).
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
    """True if the KKT conditions of the working set hold up to the tolerance, [R] bool."""
    moved = (work.point - work.target).norm(dim=1)
    return residual_of(work) <= KKT * moved + NOISE * work.point.norm(dim=1)


def is_vanished(work: Work) -> Tensor:
    """True for points that count as 0, [R] bool.

    At threshold 0 the boundaries of all half-spaces meet at 0, and float32 cannot decide which constraints are active.
    """
    return work.point.norm(dim=1) <= VANISHED * work.target.norm(dim=1)


def is_empty(work: Work, threshold: float) -> Tensor:
    """True where the multipliers prove that no point of the bounds satisfies the constraints, [R] bool (Farkas).

    Such a point p has <p, l V> <= threshold * sum(l); this fails if even the bounds' smallest value of <p, l V> is
    larger. Multipliers grow without end where the set is empty, so that they prove it after a few steps.
    """
    along = (work.target - work.shifted).double()
    smallest = torch.where(along > 0, work.lower, work.upper).double() * along
    excess = smallest.sum(1) - threshold * work.l.sum(1)
    return excess > NOISE * smallest.abs().sum(1)


def settle(work: Work, hessian: Tensor, threshold: float, buffers: Buffers) -> Tensor:
    """Make the float32 points feasible, with feasibility computed in float64; returns True for success, [R] bool.

    The half-spaces are moved inwards by a margin, which grows if it is too small, and a Newton step from the rounded
    point removes the remaining violation, so that rounding errors do not add up. Pixels at their bounds stay there.
    The violations are computed once in float64 and then updated with each step. The update is accurate: the difference
    of two points so near to each other is exact, and its float32 products lose 1e-7 of a displacement that is itself
    about 1e-6 of the threshold.

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
        # The first step also removes the error that Newton left. After it, a part of the margin must remain; later
        # steps do not require this, since a degenerate corner may have no room for a margin.
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
    """Shrink infeasible points towards 0, which is always feasible.

    Returns True for points that are feasible now and were shrunk by less than 0.1 %, [R] bool.
    """
    value = exact_inner(work.rows, work.point, buffers)
    worst = value.amax(1)
    factor = torch.where(worst > limit, threshold / worst.clamp_min(1e-300), 1.0)
    work.point = work.point * factor.float().unsqueeze(1)
    value = exact_inner(work.rows, work.point, buffers)
    return (value <= limit).all(1) & (factor > 1 - 1e-3)
