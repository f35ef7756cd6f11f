"""The exact projection in operations of fixed shapes, for devices where a look at a result makes the host wait.

The method is that of `projection.py`. But all examples have working sets of one width and take the same number of
steps, and the host looks once after each check of all anchors. Only verified points are kept; the solver of
`projection.py`, which adapts to each example, goes on with the others from where they are.

Shapes: B batch, N anchors, D = C*H*W; R examples in progress, K anchors in the working set of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from threat_specification.projected_displacement.buffers import Buffers
from threat_specification.projected_displacement.directions import UnsafeDirections
from threat_specification.projected_displacement.dual_newton import (
    ACCEPT,
    FLAT,
    MARGIN,
    NOISE,
    SETTLED,
    WIDEN,
    Work,
    curvature,
    exact_inner,
    inner,
    is_converged,
    is_vanished,
    residual_of,
)
from threat_specification.projected_displacement.nnls import nnls_of_fixed_length
from threat_specification.projected_displacement.pace import numbers_of, pace_of
from threat_specification.projected_displacement.warm_start import WarmStart

WIDTH = 32  # anchors in the first working sets
SPARE = 1.5  # anchors in the working sets, as a multiple of the largest number of active ones
WIDENING = 4  # factor of the width if the working sets are full
CHECKS = 8  # most checks of all anchors in one attempt
ATTEMPTS = 4  # most attempts; each later one has fewer examples and wider sets
FEW = 8  # an attempt ends when no more than 1 / FEW of its examples are left: they cost less in an attempt of their own
HOPELESS = 0.75  # no further attempt is made if more than this share of examples is left
STEPS = 2  # Newton steps from one check to the next
EXCHANGES = 4  # block exchanges for each small problem
EXCHANGES_NEAR = 2  # of a move that makes points feasible, where the active anchors are nearly known
# Most that a move which makes points feasible may change one, in units of rounding errors; more is a sign of a corner
# where too many half-spaces meet.
FAR = 8.0
SHORTEST, LONGEST = -3, 2  # powers of 4: the lengths of the line search
MOVES = 3  # moves that make points feasible


def project_in_fixed_shapes(
    bound: UnsafeDirections,
    numbers: Tensor,
    target: Tensor,
    lower: Tensor,
    upper: Tensor,
    along: Tensor,
    threshold: float,
    result: Tensor,
    warm: WarmStart,
) -> Tensor:
    """Write the projections of the examples `numbers` [R] into `result` [B, D]; returns the numbers that are left.

    target, lower, upper  [B, D]
    along                 [B, N] displacements at the clipped targets
    """
    at_first, most = (warm.anchors.clone(), warm.multipliers.clone()), along.shape[1]
    along = along.clone()  # the caller goes on with that at the clipped targets
    width = min(max(WIDTH, round(SPARE * warm.widest)), most)
    warm.widest = 0
    for _ in range(ATTEMPTS):
        left, widest = [], 0
        for part in numbers.split(max(1, pace_of(target.device).rows_bytes // (4 * width * target.shape[1]))):
            work = _begin(bound, part, target, lower, upper, along[part], threshold, warm, width)
            solved, along[part], active = _attempt(bound, work, along[part], threshold, warm)
            result[part] = torch.where(solved.unsqueeze(1), work.point, result[part])
            warm.store(part, work.anchors, work.l, width)
            left.append(_of_part(part, ~solved))
            widest = max(widest, active)
        before, numbers = len(numbers), torch.cat(left)
        warm.widest = max(warm.widest, widest)
        if not len(numbers):
            return numbers
        if _is_narrow(width, widest, most):
            width = min(max(WIDENING * width, round(SPARE * widest)), most)
        elif len(numbers) > HOPELESS * before:
            break
    # Multipliers that led nowhere are no good start: those from before are put back.
    anchors, multipliers = at_first
    warm.store(numbers, anchors[numbers], multipliers[numbers], anchors.shape[1])
    return numbers


def _is_narrow(width: int, widest: int, most: int) -> bool:
    """True if working sets have too little room beside the active anchors, and can be wider."""
    return width < min(SPARE * widest, most)


def _of_part(part: Tensor, mask: Tensor) -> Tensor:
    """The entries of `part` where the mask is True."""
    return part[numbers_of(mask, int(mask.sum()))]


def _begin(bound, numbers, target, lower, upper, along, threshold: float, warm: WarmStart, width: int) -> Work:
    """Make working sets: the active anchors of the warm start, then the most violated ones."""
    anchors, multipliers = warm.anchors[numbers], warm.multipliers[numbers]
    chosen, multipliers = _chosen(along, anchors, multipliers, width)
    rows, norms = bound.working_rows(numbers, chosen, warm.buffers)
    target, lower, upper = target[numbers], lower[numbers], upper[numbers]
    work = Work(numbers, target, lower, upper, chosen, rows, norms, multipliers, target, target, multipliers)
    work.move(threshold)
    return work


def _chosen(along: Tensor, anchors: Tensor, multipliers: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The active of the given anchors [R, K], then the most violated others: [R, width], and their multipliers.

    Anchors with multiplier 0 may be there several times, so that the larger value counts.
    """
    score = torch.where(multipliers > 0, torch.inf, -torch.inf).to(along.dtype)
    score = along.scatter_reduce(1, anchors, score, "amax")
    chosen = score.topk(width, dim=1).indices
    known = torch.zeros_like(along, dtype=multipliers.dtype).scatter_reduce_(1, anchors, multipliers, "amax")
    return chosen, known.gather(1, chosen)


def _attempt(bound, work: Work, along: Tensor, threshold: float, warm: WarmStart) -> tuple[Tensor, Tensor, int]:
    """Project the examples of `work`.

    Returns which are solved, [R] bool; the displacements `along` [R, N] anew; the largest number of active anchors.
    """
    count, width = work.anchors.shape
    for check in range(CHECKS):
        if check:
            _renew(bound, work, along, threshold, warm)
        for _ in range(STEPS):
            _newton_step(work, threshold)
        along = bound.displacements(work.point, work.numbers, checked=False)
        nearest = along.scatter(1, work.anchors, -torch.inf).amax(1)
        noise = (NOISE * work.point.norm(dim=1) + SETTLED) * warm.longest[work.numbers]
        at_rest = is_converged(work)
        at_zero = at_rest & is_vanished(work)
        done = at_rest & (at_zero | (nearest <= threshold - noise))
        num_done, widest = torch.stack((done.sum(), (work.l > 0).sum(1).amax())).tolist()
        nearly = check > 0 and num_done >= count - count // FEW
        if num_done == count or nearly or _is_narrow(width, widest, along.shape[1]):
            break
    if not num_done:
        return done, along, widest
    work.point = work.point.masked_fill(at_zero.unsqueeze(1), 0)
    before = work.point
    good = _make_feasible(work, threshold, warm.buffers)
    moved_by = (work.point - before).norm(dim=1)
    reach = (moved_by + NOISE * before.norm(dim=1)) * warm.longest[work.numbers]
    near = moved_by <= FAR * (SETTLED + NOISE * (before.norm(dim=1) + (work.target - before).norm(dim=1)))
    return done & good & near & (nearest + reach <= threshold), along, widest


def _renew(bound, work: Work, along: Tensor, threshold: float, warm: WarmStart) -> None:
    """Replace anchors that are not active by the most violated ones."""
    work.anchors, work.l = _chosen(along, work.anchors, work.l, work.anchors.shape[1])
    work.rows, work.norms = bound.working_rows(work.numbers, work.anchors, warm.buffers)
    work.excess = inner(work.rows, work.point).double() - threshold


def _newton_step(work: Work, threshold: float) -> None:
    """Take one ascent step on the dual: `dual_newton.newton_step` without looks.

    Where the small problem is not solved after its exchanges, its step may not ascend; that of the projected gradient
    does.
    """
    hessian = curvature(work, WIDEN * residual_of(work) / work.target.shape[1] ** 0.5)
    linear = work.excess + torch.bmm(hessian, work.l.unsqueeze(2)).squeeze(2)
    step = nnls_of_fixed_length(hessian, linear, work.l, EXCHANGES) - work.l
    uphill = (work.excess * step).sum(1, keepdim=True) > 0
    gradient = (work.l + work.excess / hessian.diagonal(dim1=1, dim2=2)).clamp_min(0) - work.l
    step = torch.where(uphill, step, gradient)
    length = _line_search(work, step, threshold)
    work.l = (work.l + length * step).clamp_min_(0)
    work.move(threshold)


def _line_search(work: Work, step: Tensor, threshold: float) -> Tensor:
    """Step length at which the slope of the dual along the step is nearly 0, [R, 1] float64.

    The slope decreases. It is computed at all lengths at once, and is taken as linear between the two where it changes
    sign.
    """
    along = torch.bmm(step.float().unsqueeze(1), work.rows)
    longest = torch.where(step < 0, -work.l / step, torch.inf).amin(1, keepdim=True).clamp_min(1)
    start, cost = (work.excess * step).sum(1, keepdim=True), threshold * step.sum(1, keepdim=True)
    powers = torch.arange(SHORTEST, LONGEST + 1, dtype=step.dtype, device=step.device)
    lengths = torch.minimum(4**powers, longest)
    shifted = torch.addcmul(work.shifted.unsqueeze(1), lengths.float().unsqueeze(2), along, value=-1)
    points = torch.minimum(torch.maximum(shifted, work.lower.unsqueeze(1)), work.upper.unsqueeze(1))
    slopes = torch.bmm(points, along.transpose(1, 2)).squeeze(2).double() - cost
    noise = NOISE * along.norm(dim=2).double() * work.point.norm(dim=1, keepdim=True)
    whole = 1 - SHORTEST  # the place of length 1, after that of length 0
    lengths, slopes = (torch.cat(both, 1) for both in ((torch.zeros_like(start), lengths), (start, slopes)))
    place = (slopes[:, 1:] > 0).sum(1, keepdim=True)
    after = (place + 1).clamp_max(lengths.shape[1] - 1)
    low, high = lengths.gather(1, place), lengths.gather(1, after)
    rising, falling = slopes.gather(1, place), slopes.gather(1, after)
    between = low + (high - low) * (rising / (rising - falling).clamp_min(1e-30)).clamp(0, 1)
    fits = slopes[:, whole : whole + 1].abs() <= FLAT * start + noise
    return torch.where(fits, lengths[:, whole : whole + 1], between)


def _make_feasible(work: Work, threshold: float, buffers: Buffers) -> Tensor:
    """Make the float32 points feasible, as `dual_newton.settle` does; returns True for success, [R] bool.

    Success needs a part of the margin, which a degenerate corner may not have.
    """
    hessian = curvature(work, torch.zeros_like(work.norms[:, 0]))
    room = 0.5 * ACCEPT * threshold
    margin = MARGIN * (1 + 4 * work.point.square().mean(1, keepdim=True).sqrt()) * work.norms
    kept = (0.5 * margin - room).clamp_min(0)
    inside = (work.point > work.lower) & (work.point < work.upper)
    at_zero = ~work.point.any(1)
    beyond = exact_inner(work.rows, work.point, buffers) - threshold
    good = at_zero
    for move in range(MOVES):
        goal = beyond + (4.0**move * margin - room).clamp_min(0)
        linear = goal + torch.bmm(hessian, work.l.unsqueeze(2)).squeeze(2)
        step = nnls_of_fixed_length(hessian, linear, work.l, EXCHANGES_NEAR) - work.l
        work.l = torch.where(good.unsqueeze(1), work.l, work.l + step)
        shift = torch.bmm(step.float().unsqueeze(1), work.rows).squeeze(1)
        moved = torch.minimum(torch.maximum(work.point - shift, work.lower), work.upper)
        moved = torch.where(inside & ~good.unsqueeze(1), moved, work.point)
        beyond = beyond + inner(work.rows, moved - work.point)
        work.point = moved
        good = (beyond + kept <= 0.5 * room).all(1) | at_zero
    return good
