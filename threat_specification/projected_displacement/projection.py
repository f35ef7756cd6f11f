"""Euclidean projection onto {PD <= threshold} and per-pixel bounds, exact and batched.

Shapes: B batch, N anchors, D = C*H*W; R examples in progress, K anchors in the working set of each.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from threat_specification.base import refuse_non_finite
from threat_specification.projected_displacement.directions import UnsafeDirections
from threat_specification.projected_displacement.dual_newton import (
    ACCEPT,
    NOISE,
    SETTLED,
    Work,
    curvature,
    inner,
    is_converged,
    is_empty,
    is_vanished,
    newton_step,
    residual_of,
    ridge,
    settle,
)
from threat_specification.projected_displacement.fixed_shapes import project_in_fixed_shapes
from threat_specification.projected_displacement.halfspaces import halfspace_multipliers
from threat_specification.projected_displacement.pace import numbers_of, pace_of
from threat_specification.projected_displacement.warm_start import WarmStart

ROUNDS = 200  # maximum number of Newton steps; the hardest known case takes about 30
SLACK = 1.0  # an anchor may be dropped if the point is this many residuals inside its half-space
FIRST = 4  # anchors in the first working set
FAR = 1000.0  # diagonals of the box: targets farther away are first brought to this distance
NEARER = 10.0  # the same, where Newton's method does not solve a target


def project_exact(
    bound: UnsafeDirections,
    delta: Tensor,
    threshold: float,
    lower: Tensor,
    upper: Tensor,
    warm: WarmStart,
    can_be_empty: bool = False,
) -> tuple[Tensor, Tensor]:
    """argmin_p ||p - delta||^2  subject to  <p, v_j> <= threshold for all anchors j,  lower <= p <= upper.

    The method is semismooth Newton on the dual of the anchors' constraints; the bounds are solved in closed form:

        p(l) = clip(delta - sum_j l_j v_j, lower, upper),      gradient of the dual  V p(l) - threshold,
        curvature  V diag(lower < p < upper) V^T,              l >= 0 by a small NNLS problem for each step.

    It uses a working set of the anchors whose constraints are active or most violated (Qi and Sun 1993; Li, Sun and Toh
    2018 for the same structure). Each round costs one B x D x N product and O(B K^2 D). `settle` makes the points
    feasible in float32 and checks them in float64. Feasible rows are returned bit-identical; rows that clipping makes
    feasible are only clipped. Targets beyond FAR diagonals of the box, where float32 loses the point beside them, are
    brought nearer, and those beyond NEARER that are not solved. Such a point goes along delta as far as any of the set
    does, up to a hundredth of the diagonal (VANISHED * FAR), or a tenth (1 / NEARER) at worst.

    Returns the points, and the numbers of the rows that Newton's method did not solve. `warm` is the warm start; it is
    updated. `can_be_empty`: the bounds need not contain 0, so that a set may be empty; its row is not solved.
    """
    clipped = torch.minimum(torch.maximum(delta, lower), upper)
    flat = clipped.flatten(1)
    along = bound.displacements(flat, checked=False)
    outside = _outside_of_all(bound, delta, flat, along, threshold, warm)
    if not len(outside):
        return clipped, outside
    target, low, high = delta.flatten(1), lower.expand_as(delta).flatten(1), upper.expand_as(delta).flatten(1)
    result, target = flat.clone(), _brought_nearer(target, low, high, FAR)
    if pace_of(flat.device).fixed_shapes:
        outside = project_in_fixed_shapes(bound, outside, target, low, high, along, threshold, result, warm)
        if not len(outside):
            return result.view_as(delta), outside
    unsolved = _project_rows(bound, outside, target, low, high, flat, along, threshold, result, warm, can_be_empty)
    if len(unsolved):
        nearer = _brought_nearer(target, low, high, NEARER)
        again = unsolved[(nearer != target)[unsolved].any(1)]
        warm.multipliers[again] = 0
        left = _project_rows(bound, again, nearer, low, high, flat, along, threshold, result, warm, can_be_empty)
        unsolved = torch.cat([unsolved[~torch.isin(unsolved, again)], left])
    return result.view_as(delta), unsolved


def _project_rows(
    bound,
    numbers: Tensor,
    target,
    low,
    high,
    flat,
    along,
    threshold: float,
    result,
    warm: WarmStart,
    can_be_empty: bool,
) -> Tensor:
    """Project targets [B, D] of the examples `numbers` into `result`; returns the numbers of those left unsolved."""
    nearest = _guess(bound, numbers[(flat == target)[numbers].all(1)], flat, along, threshold, warm)
    parts = [numbers[:0]]
    for part, spare in _parts(numbers, nearest < torch.inf, warm, flat.shape[1]):
        known = (target[part], low[part], high[part], flat[part], along[part])
        work = _begin(bound, part, *known, threshold, warm, spare)
        if not spare:
            accepted = _accept(bound, work, nearest[part], threshold, result, warm)
            if bool(accepted.all()):
                continue
            work = work.take(~accepted)
        parts.append(_solve(bound, work, threshold, result, warm, can_be_empty))
    return torch.cat(parts)


def _brought_nearer(target: Tensor, lower: Tensor, upper: Tensor, diagonals: float) -> Tensor:
    """Targets [B, D] on the way from the box's point next to 0, at most so many of its diagonals away from that."""
    start = torch.minimum(torch.maximum(torch.zeros_like(target), lower), upper)
    way = target - start
    length = torch.linalg.vector_norm(way, dim=1, keepdim=True, dtype=torch.float64)
    most = diagonals * torch.linalg.vector_norm(upper - lower, dim=1, keepdim=True, dtype=torch.float64)
    nearer = start + way * (most / length).float()
    return torch.where(length > most, nearer, target)


def _guess(bound, numbers: Tensor, flat: Tensor, along: Tensor, threshold: float, warm: WarmStart) -> Tensor:
    """Guess the multipliers of examples whose perturbations satisfy the bounds, since their projections mostly do too.

    Writes them to `warm`. Returns the largest <p, v_j> of the anchors with multiplier 0, [B]; inf without a guess.
    """
    nearest = torch.full_like(flat[:, 0], torch.inf)
    if not len(numbers) or not bound.has_gram:
        return nearest
    noise = NOISE * flat[numbers].norm(dim=1) * warm.longest[numbers]
    guesses = halfspace_multipliers(bound, numbers, along[numbers], noise, threshold)
    for which, anchors, multipliers, others in guesses:
        warm.store(which, anchors, multipliers)
        nearest[which] = others
    return nearest


def _parts(outside: Tensor, guessed: Tensor, warm: WarmStart, num_pixels: int) -> Iterator[tuple[Tensor, int]]:
    """Yield groups of examples with working sets of similar size and limited memory, and how many anchors to add."""
    bytes_at_once = pace_of(warm.longest.device).rows_bytes
    spare = torch.where(guessed, 0, FIRST)
    size = (warm.multipliers > 0).sum(1) + spare
    rough = torch.exp2(size.float().clamp_min(1).log2().ceil()).long()
    for width in rough[outside].unique().tolist():
        for added in (0, FIRST):
            chosen = outside[(rough[outside] == width) & (spare[outside] == added)]
            parts = chosen.split(max(1, bytes_at_once // (4 * num_pixels * width))) if len(chosen) else ()
            yield from ((part, added) for part in parts)


def _outside_of_all(bound, delta: Tensor, flat: Tensor, along: Tensor, threshold: float, warm: WarmStart) -> Tensor:
    """Numbers of the examples beyond the threshold; raises UsageError if delta contains NaN or infinity.

    It asks the device once, and again only if float64 has to decide.
    """
    noise = NOISE * flat.norm(dim=1) * warm.longest
    worst = along.amax(1)
    outside, near = worst > threshold + noise, worst > threshold - noise
    finite, doubtful, count = torch.stack((delta.sum().isfinite(), (near & ~outside).sum(), outside.sum())).tolist()
    if not finite:
        refuse_non_finite("delta", delta)
    if doubtful:
        every = torch.arange(len(flat), device=flat.device)
        return _outside(bound, every, flat, along, threshold, warm).nonzero().squeeze(1)
    return numbers_of(outside, count)


def _outside(bound, numbers: Tensor, flat: Tensor, along: Tensor, threshold: float, warm: WarmStart) -> Tensor:
    """True for the points of the examples `numbers` that are beyond the threshold, [R] bool.

    The points flat [R, D] and their displacements [R, N] are float32; float64 decides the cases within rounding error.
    """
    noise = NOISE * flat.norm(dim=1) * warm.longest[numbers]
    worst = along.amax(1)
    outside = worst > threshold + noise
    doubtful = ((worst > threshold - noise) & ~outside).nonzero().squeeze(1)
    if len(doubtful):
        which, anchors = (along[doubtful] > (threshold - noise[doubtful]).unsqueeze(1)).nonzero(as_tuple=True)
        which = doubtful[which]
        exact = (bound.directions(numbers[which], anchors).double() * flat[which].double()).sum(1)
        accepted = threshold * (1 + ACCEPT) + bound.row_error * flat.norm(dim=1)[which] * warm.longest[numbers[which]]
        outside[which[exact > accepted]] = True
    return outside


def _begin(bound, numbers, target, lower, upper, point, along, threshold: float, warm: WarmStart, spare: int) -> Work:
    """Make working sets: the active anchors of the warm start, then `spare` of the most violated."""
    multipliers = warm.multipliers[numbers]
    which, slot = (multipliers > 0).nonzero(as_tuple=True)
    bound_to = warm.anchors[numbers][which, slot]
    score = along.clone()
    score[which, bound_to] = torch.inf
    known = int((multipliers > 0).sum(1).max()) if len(which) else 0
    chosen = score.topk(min(along.shape[1], max(1, spare + known)), dim=1).indices
    l = torch.zeros_like(along, dtype=torch.float64)  # noqa: E741
    l[which, bound_to] = multipliers[which, slot]
    l = l.gather(1, chosen)  # noqa: E741
    rows, norms = bound.working_rows(numbers, chosen, warm.buffers)
    shifted = target - torch.bmm(l.float().unsqueeze(1), rows).squeeze(1)
    point = torch.minimum(torch.maximum(shifted, lower), upper)
    excess = inner(rows, point).double() - threshold
    return Work(numbers, target, lower, upper, chosen, rows, norms, l, shifted, point, excess)


def _accept(bound, work: Work, nearest: Tensor, threshold: float, result: Tensor, warm: WarmStart) -> Tensor:
    """Write the correct guesses into `result` without a check of all anchors; returns True for them, [R] bool."""
    noise = (NOISE * work.point.norm(dim=1) + SETTLED) * warm.longest[work.numbers]
    free = ((work.point == work.shifted) & (work.point > work.lower) & (work.point < work.upper)).all(1)
    right = free & is_converged(work) & ~is_vanished(work) & (nearest <= threshold - noise)
    if bool(right.any()):
        finished = work if bool(right.all()) else work.take(right)
        hessian = bound.curvature(finished.numbers, finished.anchors).double() + ridge(finished)
        unsolved = _finish(bound, finished, hessian, nearest[right], threshold, result, warm)
        right[torch.isin(work.numbers, unsolved)] = False
    return right


def _solve(bound, work: Work, threshold: float, result: Tensor, warm: WarmStart, can_be_empty: bool) -> Tensor:
    """Project the examples of `work` into `result`; returns the numbers of those left unsolved."""
    unsolved = [work.numbers[:0]]
    for _ in range(ROUNDS):
        if 4 * work.rows.numel() > 2 * pace_of(work.rows.device).rows_bytes and len(work.numbers) > 1:
            half = torch.arange(len(work.numbers), device=work.rows.device) < len(work.numbers) // 2
            parts = [_solve(bound, work.take(part), threshold, result, warm, can_be_empty) for part in (half, ~half)]
            return torch.cat(unsolved + parts)
        newton_step(work, residual_of(work), threshold)
        if can_be_empty and bool((empty := is_empty(work, threshold)).any()):
            unsolved.append(work.numbers[empty])
            work = work.take(~empty)
            if not len(work.numbers):
                return torch.cat(unsolved)
        at_rest = is_converged(work)
        at_zero = at_rest & is_vanished(work)
        noise = (NOISE * work.point.norm(dim=1) + SETTLED) * warm.longest[work.numbers]
        work.point[at_zero] = 0
        along = _others(bound, work)
        missing = along > (threshold - noise).unsqueeze(1)
        done = at_rest & (at_zero | ~missing.any(1))
        if bool(done.any()):
            finished = work if bool(done.all()) else work.take(done)
            hessian = curvature(finished, torch.zeros_like(finished.norms[:, 0]))
            unsolved.append(_finish(bound, finished, hessian, along.amax(1)[done], threshold, result, warm))
            if finished is work:
                return torch.cat(unsolved)
            work, along, missing, noise = work.take(~done), along[~done], missing[~done], noise[~done]
        _drop(work, noise)
        _extend(bound, work, along, missing, threshold)
    return torch.cat([*unsolved, work.numbers])


def _others(bound, work: Work) -> Tensor:
    """<p, v_j> of the anchors outside the working sets, [R, N]; -inf for those inside, and where masked."""
    return bound.displacements(work.point, work.numbers).scatter_(1, work.anchors, -torch.inf)


def _finish(
    bound, work: Work, hessian: Tensor, nearest: Tensor, threshold: float, result: Tensor, warm: WarmStart
) -> Tensor:
    """Write feasible points into `result`; returns the numbers of the examples without a feasible point.

    hessian  [R, K, K] float64, the curvature at the points
    nearest  [R] largest <p, v> of the anchors outside the working sets, before settling
    """
    before = work.point
    good = settle(work, hessian, threshold, warm.buffers)
    moved_by = (work.point - before).norm(dim=1)
    reach = (moved_by + NOISE * before.norm(dim=1)) * warm.longest[work.numbers]
    far = (moved_by > SETTLED + 0.5 * NOISE * before.norm(dim=1)) & (nearest + reach > threshold)
    if bool(far.any()):
        moved = work.take(far)
        good[far] &= ~_outside(bound, moved.numbers, moved.point, _others(bound, moved), threshold, warm)
    result[work.numbers] = work.point
    warm.store(work.numbers, work.anchors, work.l)
    return work.numbers[~good]


def _drop(work: Work, noise: Tensor) -> None:
    """Drop slack anchors with multiplier 0 if this makes the working sets much smaller.

    noise [R] is the tolerance for anchors outside the sets to count as missing. An anchor within twice this tolerance
    is kept, since it would soon be added again.
    """
    slack = SLACK * residual_of(work).unsqueeze(1) * work.norms + 2 * noise.unsqueeze(1)
    idle = (work.l == 0) & (work.excess < -slack)
    width = max(FIRST, int((~idle).sum(1).max()))
    if width > 0.85 * idle.shape[1]:
        return
    kept = (~idle).to(torch.uint8).topk(width, dim=1).indices
    work.anchors, work.norms, work.l, work.excess = (
        field.gather(1, kept) for field in (work.anchors, work.norms, work.l, work.excess)
    )
    work.rows = work.rows.gather(1, kept.unsqueeze(2).expand(-1, -1, work.rows.shape[2]))


def _extend(bound, work: Work, along: Tensor, missing: Tensor, threshold: float) -> None:
    """Add the most violated of the missing anchors to the working sets."""
    wanted = int(missing.sum(1).max())
    if not wanted:
        return
    count = min(wanted, max(FIRST, int((work.l > 0).sum(1).max()) // 2), along.shape[1] - work.anchors.shape[1])
    value, chosen = along.topk(count, dim=1)
    rows, norms = bound.working_rows(work.numbers, chosen)
    zeros = torch.zeros_like(value, dtype=torch.float64)
    work.anchors = torch.cat([work.anchors, chosen], 1)
    work.rows = torch.cat([work.rows, rows], 1)
    work.norms = torch.cat([work.norms, norms], 1)
    work.l = torch.cat([work.l, zeros], 1)
    work.excess = torch.cat([work.excess, value.double().nan_to_num(neginf=0) - threshold], 1)
