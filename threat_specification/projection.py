"""Euclidean projection onto {PD <= threshold} and per-pixel bounds, exact and batched.

Shapes: B batch, N anchors, D = C*H*W; R examples still being worked on, K anchors in their working set.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from threat_specification.nnls import nnls

if TYPE_CHECKING:
    from threat_specification.projected_displacement import BoundProjectedDisplacement

MARGIN = 7e-8  # l2 distance kept from the half-spaces: four standard deviations of what rounding x + p to float32 moves
VANISHED = 1e-5  # |p| / |d| below which p counts as 0; |d - p| of a cone's nearest point p then differs by 5e-11 of it
SETTLED = 8 * MARGIN  # by how much settling may move a point before all anchors are looked at again
ACCEPT = 1e-6  # relative excess over the threshold that counts as feasible
NOISE = 1e-6  # float32 error of <d, v>, relative to |d| |v|
KKT = 2e-6  # residual at which Newton stops, relative to the distance moved
RIDGE = (
    2e-7  # of |v|^2, for each anchor in the working set: more than float32 can make a curvature's eigenvalues negative
)
ROUNDS = 200  # Newton steps before giving up; the hardest case seen takes about 30
REPAIRS = 8
SLACK = 1.0  # times the residual: how far inside its half-space a point is that an anchor may be forgotten
WIDEN = 1.0  # times the residual per pixel
FLAT = 0.25  # of the slope at the start: where a line search stops
TRIES = 20
CHUNK = 16 << 20  # bytes of rows worked on at a time: larger blocks leave the cache, and are mapped afresh each time
FIRST = 4  # anchors in the first working set


@dataclass
class WarmStart:
    """What the last projection of a bound threat found; a guess for the next, never trusted.

    anchors      [B, K] int64 working sets            multipliers  [B, K] float64, 0 where the anchor does not bind
    longest      [B] float32 the largest |v|; sizes the float32 error of displacements
    """

    longest: Tensor
    anchors: Tensor
    multipliers: Tensor


@dataclass
class _Work:
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

    def take(self, index: Tensor) -> _Work:
        return _Work(*(getattr(self, field.name)[index] for field in fields(self)))


def project_exact(
    bound: BoundProjectedDisplacement,
    delta: Tensor,
    threshold: float,
    lower: Tensor | None = None,
    upper: Tensor | None = None,
) -> Tensor:
    """argmin_p ||p - delta||^2  subject to  <p, v_j> <= threshold for all anchors j,  lower <= p <= upper.

    Semismooth Newton on the dual of the anchors' constraints alone, the bounds being solved in closed form:

        p(l) = clip(delta - sum_j l_j v_j, lower, upper),      gradient of the dual  V p(l) - threshold,
        curvature  V diag(lower < p < upper) V^T,              l >= 0 by a small NNLS problem for each step,

    on a working set of the anchors that bind or are violated most (Qi and Sun 1993; Li, Sun and Toh 2018 for
    the same structure). Each round costs one B x D x N product and O(B K^2 D). The answer is checked in float64
    and shrunk by a hair where rounding left it outside. Feasible rows come back bit-identical, rows that are feasible
    once clipped are clipped. Where Newton gives up `bound.fallbacks` counts the row and `bound.scale` answers.
    """
    lower, upper = bound.bounds(lower, upper)
    clipped = torch.minimum(torch.maximum(delta, lower), upper)
    flat = clipped.flatten(1)
    along = bound.displacements(flat)
    warm = _warm_start(bound, along)
    every = torch.arange(len(flat), device=flat.device)
    outside = _outside(bound, every, flat, along, threshold, warm).nonzero().squeeze(1)
    if not len(outside):
        return clipped
    target, low, high = delta.flatten(1), lower.expand_as(delta).flatten(1), upper.expand_as(delta).flatten(1)
    result = flat.clone()
    parts = []
    size = max(1, CHUNK // (4 * flat.shape[1] * max(FIRST, warm.anchors.shape[1])))
    for part in outside.split(size):
        work = _begin(bound, part, target[part], low[part], high[part], flat[part], along[part], threshold, warm)
        parts.append(_solve(bound, work, threshold, result, warm))
    unsolved = torch.cat(parts)
    if len(unsolved):
        bound.fallbacks = getattr(bound, "fallbacks", 0) + len(unsolved)
        result[unsolved] = bound.scale(delta, threshold, lower, upper).flatten(1)[unsolved]
    return result.view_as(delta)


def _warm_start(bound: BoundProjectedDisplacement, along: Tensor) -> WarmStart:
    """The state kept on `bound`, made at the first call."""
    warm = getattr(bound, "warm", None)
    if warm is None:
        empty = torch.zeros(len(along), 0, device=along.device)
        warm = WarmStart(1 / bound.inscribed_radius(), empty.long(), empty.double())
        bound.warm = warm
    return warm


def _outside(bound, numbers: Tensor, flat: Tensor, along: Tensor, threshold: float, warm: WarmStart) -> Tensor:
    """Which of the points of the examples `numbers` are beyond the threshold, [R] bool.

    flat [R, D] and its displacements [R, N] are float32; where that cannot tell, float64 decides.
    """
    noise = NOISE * flat.norm(dim=1) * warm.longest[numbers]
    worst = along.amax(1)
    outside = worst > threshold + noise
    doubtful = ((worst > threshold - noise) & ~outside).nonzero().squeeze(1)
    if len(doubtful):
        which, anchors = (along[doubtful] > (threshold - noise[doubtful]).unsqueeze(1)).nonzero(as_tuple=True)
        which = doubtful[which]
        exact = (bound.directions(numbers[which], anchors).double() * flat[which].double()).sum(1)
        outside[which[exact > threshold * (1 + ACCEPT)]] = True
    return outside


def _begin(bound, numbers, target, lower, upper, point, along, threshold: float, warm: WarmStart) -> _Work:
    """Working sets: what the warm start says binds, then the most violated."""
    multipliers = warm.multipliers[numbers]
    which, slot = (multipliers > 0).nonzero(as_tuple=True)
    bound_to = warm.anchors[numbers][which, slot]
    score = along.clone()
    score[which, bound_to] = torch.inf
    known = int((multipliers > 0).sum(1).max()) if len(which) else 0
    chosen = score.topk(min(along.shape[1], FIRST + known), dim=1).indices
    l = torch.zeros_like(along, dtype=torch.float64)  # noqa: E741
    l[which, bound_to] = multipliers[which, slot]
    l = l.gather(1, chosen)  # noqa: E741
    rows = _rows(bound, numbers, chosen)
    norms = _norms(rows)
    shifted = target - torch.bmm(l.float().unsqueeze(1), rows).squeeze(1)
    point = torch.minimum(torch.maximum(shifted, lower), upper)
    excess = _inner(rows, point).double() - threshold
    return _Work(numbers, target, lower, upper, chosen, rows, norms, l, shifted, point, excess)


def _rows(bound, numbers: Tensor, anchors: Tensor) -> Tensor:
    """v_j(x), [R, K, D], for the anchors [R, K] of each example."""
    which = numbers.unsqueeze(1).expand_as(anchors)
    return bound.directions(which.reshape(-1), anchors.reshape(-1)).view(*anchors.shape, -1)


def _norms(rows: Tensor) -> Tensor:
    """|v|, [R, K] float64; 1 for the zero rows of masked anchors, which fill up working sets and never bind."""
    norms = rows.norm(dim=2).double()
    return norms.masked_fill_(norms == 0, 1)


def _inner(rows: Tensor, points: Tensor) -> Tensor:
    """<v_k, p>, [R, K]. The points stand on the left: summing is then done in blocks, faster and with fewer errors."""
    return torch.bmm(points.unsqueeze(1), rows.transpose(1, 2)).squeeze(1)


def _curvature(work: _Work, reach: Tensor) -> Tensor:
    """V diag(inside the bounds widened by reach) V^T plus a ridge, [R, K, K] float64."""
    reach = reach.float().unsqueeze(1)
    inside = (work.shifted > work.lower - reach) & (work.shifted < work.upper + reach) & (work.lower < work.upper)
    masked = work.rows if bool(inside.all()) else work.rows * inside.unsqueeze(1)
    hessian = torch.bmm(masked, work.rows.transpose(1, 2)).double()
    return hessian + torch.diag_embed(RIDGE * work.norms.shape[1] * work.norms.square())


def _residual(work: _Work) -> Tensor:
    """Violation of the KKT conditions within the working set, as an l2 distance, [R]."""
    distance = work.excess / work.norms
    return torch.where(work.l > 0, distance.abs(), distance.clamp_min(0)).amax(1)


def _newton(work: _Work, residual: Tensor, threshold: float) -> None:
    """One step uphill on the dual: towards the maximum of its quadratic model over l >= 0, as far as it rises."""
    # Pixels that the step is going to free count as free already; without them the model sees no end to the slope.
    # The widening vanishes with the residual, which leaves Newton's convergence as it is.
    hessian = _curvature(work, WIDEN * residual / work.target.shape[1] ** 0.5)
    linear = work.excess + torch.bmm(hessian, work.l.unsqueeze(2)).squeeze(2)
    step = nnls(hessian, linear, work.l) - work.l
    along = torch.bmm(step.float().unsqueeze(1), work.rows).squeeze(1)
    longest = torch.where(step < 0, -work.l / step, torch.inf).amin(1).clamp_min(1)
    length = _line_search(work, step, along, longest, threshold)
    work.l = (work.l + length.unsqueeze(1) * step).clamp_min(0)
    work.shifted = work.target - torch.bmm(work.l.float().unsqueeze(1), work.rows).squeeze(1)
    work.point = torch.minimum(torch.maximum(work.shifted, work.lower), work.upper)
    work.excess = _inner(work.rows, work.point).double() - threshold


def _line_search(work: _Work, step: Tensor, along: Tensor, longest: Tensor, threshold: float) -> Tensor:
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


def _solve(bound, work: _Work, threshold: float, result: Tensor, warm: WarmStart) -> Tensor:
    """Project the examples of `work` into `result`; returns the numbers of those left unsolved."""
    unsolved = [work.numbers[:0]]
    for _ in range(ROUNDS):
        if 4 * work.rows.numel() > 2 * CHUNK and len(work.numbers) > 1:
            half = torch.arange(len(work.numbers)) < len(work.numbers) // 2
            parts = [_solve(bound, work.take(part), threshold, result, warm) for part in (half, ~half)]
            return torch.cat(unsolved + parts)
        _newton(work, _residual(work), threshold)
        residual = _residual(work)
        length = work.point.norm(dim=1)
        converged = residual <= KKT * (work.point - work.target).norm(dim=1) + NOISE * length
        # At threshold 0 all half-spaces meet in 0, where float32 cannot tell which of them bind.
        vanished = converged & (length <= VANISHED * work.target.norm(dim=1))
        work.point[vanished] = 0
        along = _others(bound, work)
        noise = (NOISE * length + SETTLED) * warm.longest[work.numbers]
        missing = along > (threshold - noise).unsqueeze(1)
        done = converged & (vanished | ~missing.any(1))
        if bool(done.any()):
            finished = work if bool(done.all()) else work.take(done)
            unsolved.append(_finish(bound, finished, along.amax(1)[done], threshold, result, warm))
            if finished is work:
                return torch.cat(unsolved)
            work, along, missing, noise = work.take(~done), along[~done], missing[~done], noise[~done]
        _drop(work, noise)
        _extend(bound, work, along, missing, threshold)
    return torch.cat([*unsolved, work.numbers])


def _others(bound, work: _Work) -> Tensor:
    """<p, v_j> of the anchors outside the working sets, [R, N]; -inf for those inside, and where masked."""
    return bound.displacements(work.point, work.numbers).scatter_(1, work.anchors, -torch.inf)


def _finish(bound, work: _Work, nearest: Tensor, threshold: float, result: Tensor, warm: WarmStart) -> Tensor:
    """Write feasible points into `result`; returns the numbers of the examples where there is none.

    nearest  [R] largest <p, v> of the anchors outside the working sets, before settling
    """
    before = work.point
    good = _settle(work, threshold)
    moved_by = (work.point - before).norm(dim=1)
    reach = (moved_by + NOISE * before.norm(dim=1)) * warm.longest[work.numbers]
    far = (moved_by > SETTLED + 0.5 * NOISE * before.norm(dim=1)) & (nearest + reach > threshold)
    if bool(far.any()):
        moved = work.take(far)
        good[far] &= ~_outside(bound, moved.numbers, moved.point, _others(bound, moved), threshold, warm)
    result[work.numbers] = work.point
    _remember(warm, work)
    return work.numbers[~good]


def _drop(work: _Work, noise: Tensor) -> None:
    """Leave out slack anchors of multiplier 0 where that makes the working sets much smaller.

    noise [R] is the margin by which an anchor outside counts as missing: one within twice that would be back at once.
    """
    slack = SLACK * _residual(work).unsqueeze(1) * work.norms + 2 * noise.unsqueeze(1)
    idle = (work.l == 0) & (work.excess < -slack)
    width = max(FIRST, int((~idle).sum(1).max()))
    if width > 0.85 * idle.shape[1]:
        return
    kept = (~idle).to(torch.uint8).topk(width, dim=1).indices
    work.anchors, work.norms, work.l, work.excess = (
        field.gather(1, kept) for field in (work.anchors, work.norms, work.l, work.excess)
    )
    work.rows = work.rows.gather(1, kept.unsqueeze(2).expand(-1, -1, work.rows.shape[2]))


def _extend(bound, work: _Work, along: Tensor, missing: Tensor, threshold: float) -> None:
    """Add the most violated anchors that are missing to the working sets."""
    wanted = int(missing.sum(1).max())
    if not wanted:
        return
    count = min(wanted, max(FIRST, int((work.l > 0).sum(1).max()) // 2), along.shape[1] - work.anchors.shape[1])
    value, chosen = along.topk(count, dim=1)
    rows = _rows(bound, work.numbers, chosen)
    zeros = torch.zeros_like(value, dtype=torch.float64)
    work.anchors = torch.cat([work.anchors, chosen], 1)
    work.rows = torch.cat([work.rows, rows], 1)
    work.norms = torch.cat([work.norms, _norms(rows)], 1)
    work.l = torch.cat([work.l, zeros], 1)
    work.excess = torch.cat([work.excess, value.double().nan_to_num(neginf=0) - threshold], 1)


def _settle(work: _Work, threshold: float) -> Tensor:
    """Make the points feasible as float32 numbers, judged in float64; True where that worked, [R].

    The binding half-spaces are moved inwards by a margin, more where that does not suffice, and Newton's step for
    the rest is taken from the rounded point, so that rounding enters once. Pixels at their bounds stay there.
    """
    rows = work.rows.double()
    limit = threshold * (1 + 0.5 * ACCEPT)
    margin = MARGIN * (1 + 4 * work.point.square().mean(1, keepdim=True).sqrt()) * work.norms
    inside = (work.point > work.lower) & (work.point < work.upper)
    hessian = _curvature(work, torch.zeros_like(work.norms[:, 0]))
    length = work.point.norm(dim=1)
    at_zero = length == 0
    good = torch.zeros_like(at_zero)
    for repair in range(REPAIRS):
        beyond = _inner(rows, work.point.double()) - threshold
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
        work.point = torch.where(inside & ~done.unsqueeze(1), moved, work.point)
    if not bool(good.all()):
        good = _shrink(work, rows, threshold, limit)
        nothing = ~good & (length <= 10 * VANISHED * work.target.norm(dim=1))
        work.point[nothing] = 0
        good |= nothing
    return good


def _shrink(work: _Work, rows: Tensor, threshold: float, limit: float) -> Tensor:
    """Shrink towards 0, where every threshold holds, the points that are outside; True where they are inside now."""
    value = _inner(rows, work.point.double())
    worst = value.amax(1)
    factor = torch.where(worst > limit, threshold / worst.clamp_min(1e-300), 1.0)
    work.point = work.point * factor.float().unsqueeze(1)
    value = _inner(rows, work.point.double())
    return (value <= limit).all(1) & (factor > 1 - 1e-3)


def _remember(warm: WarmStart, work: _Work) -> None:
    """Keep the binding anchors of finished examples for the next projection."""
    width = max(int((work.l > 0).sum(1).max()), warm.anchors.shape[1])
    lack = width - warm.anchors.shape[1]
    if lack:
        # Padding needs distinct anchors of multiplier 0; any will do, so the place itself.
        warm.anchors = torch.nn.functional.pad(warm.anchors, (0, lack))
        warm.multipliers = torch.nn.functional.pad(warm.multipliers, (0, lack))
    order = work.l.topk(min(width, work.l.shape[1]), dim=1)
    warm.anchors[work.numbers, : order.indices.shape[1]] = work.anchors.gather(1, order.indices)
    warm.multipliers[work.numbers] = 0
    warm.multipliers[work.numbers, : order.indices.shape[1]] = order.values
