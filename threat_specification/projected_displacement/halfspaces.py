"""The multipliers of the projection onto {PD <= threshold} alone, found without touching a pixel.

With the bounds left out, the dual of the projection,

    min over l >= 0 of  1/2 l^T Q l - l^T (c - threshold),      Q_ij = <v_i, v_j>,  c = V d,

knows the anchors through their Gram matrix G only: <a_i - x, a_j - x> = G_ij - g_i - g_j + <x, x> with g = A x. Where
the point d - V^T l keeps the bounds it is the projection onto both, else a good place to start from.

Shapes: R examples, N anchors, K anchors in the working set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from threat_specification.projected_displacement.directions import UnsafeDirections
from threat_specification.projected_displacement.nnls import nnls

ENTERING = 6  # anchors that join the working set at a time, at least: more of them would mostly leave again
LOOKS = 60  # at all anchors; an example that needs more is left to what comes after


@dataclass
class _Examples:
    """What examples know of anchors, in quantities that need no pixels; centred.

    numbers  [R] which examples of the bound threat   along    [R, N] <d, v_j>; -inf where masked
    inverse  [R, N] 1 / (beta w ||u_j||^2), or 0      origins  [R, N] <a_j, x>
    squared  [R, 1] <x, x>                            reach    [R, 1] threshold, and what a displacement may be wrong by
    """

    numbers: Tensor
    along: Tensor
    inverse: Tensor
    origins: Tensor
    squared: Tensor
    reach: Tensor

    def take(self, index: Tensor) -> _Examples:
        return _Examples(*(getattr(self, field.name)[index] for field in fields(self)))


def halfspace_multipliers(
    bound: UnsafeDirections, numbers: Tensor, along: Tensor, noise: Tensor, threshold: float
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The projection p of d onto {<p, v_j> <= threshold for all j}, as far as anchors know it.

    Yields examples, anchors [r, K], their multipliers [r, K] float64, and the largest <p, v_j> of all others, [r].
    Examples come as they finish, the easy ones first, so that the hard ones hold up nobody.

    numbers  [R] examples of the bound threat, which must have a Gram matrix
    along    [R, N] <d, v_j>, -inf where masked
    noise    [R] float32 error of displacements; what is beyond the threshold by less counts as inside
    """
    work = _Examples(
        numbers,
        along,
        bound.inverse[numbers],
        bound.origins[numbers],
        bound.squared_lengths[numbers].unsqueeze(1),
        (threshold + noise).unsqueeze(1),
    )
    anchors = along.topk(min(ENTERING, along.shape[1]), dim=1).indices
    multipliers = torch.zeros_like(anchors, dtype=torch.float64)
    for _ in range(LOOKS):
        multipliers = _minimum(bound, work, anchors, multipliers, threshold)
        left = _left(bound.matrix.gram, work, anchors, multipliers)
        missing = (left > work.reach).sum(1)
        done, going = (missing == 0).nonzero().squeeze(1), missing.nonzero().squeeze(1)
        if len(done):
            yield work.numbers[done], anchors[done], multipliers[done], left[done].amax(1)
            if not len(going):
                return
            work, anchors, multipliers = work.take(going), anchors[going], multipliers[going]
            left, missing = left[going], missing[going]
        width = max(1, int((multipliers > 0).sum(1).max()))
        multipliers, kept = multipliers.topk(width, dim=1)
        anchors = anchors.gather(1, kept)
        count = min(int(missing.max()), max(ENTERING, width // 2), left.shape[1] - width)
        # Masked anchors before those that are in the set already: these must not enter twice.
        left = left.clamp_min(torch.finfo(left.dtype).min).scatter_(1, anchors, -torch.inf)
        entering = left.topk(count, dim=1).indices
        anchors = torch.cat([anchors, entering], 1)
        multipliers = torch.nn.functional.pad(multipliers, (0, count))


def _minimum(bound, work: _Examples, anchors: Tensor, start: Tensor, threshold: float) -> Tensor:
    """The multipliers at the minimum of the dual over a working set, [R, K]; masked anchors have none."""
    hessian = bound.curvature(work.numbers, anchors).double()
    masked = work.inverse.gather(1, anchors) == 0
    hessian.diagonal(dim1=1, dim2=2).masked_fill_(masked, 1)
    linear = (work.along.gather(1, anchors).double() - threshold).masked_fill_(masked, -1)
    return nnls(hessian, linear, start)


def _left(gram: Tensor, work: _Examples, anchors: Tensor, multipliers: Tensor) -> Tensor:
    """<d - V^T l, v_j> for the anchors that do not bind, [R, N]; -inf for those that do, and where masked."""
    weights = multipliers.float() * work.inverse.gather(1, anchors)
    total = weights.sum(1, keepdim=True)
    towards = (weights * work.origins.gather(1, anchors)).sum(1, keepdim=True)
    # K rows of G for each example, not all of them.
    pulled = torch.nn.functional.embedding_bag(anchors, gram, per_sample_weights=weights, mode="sum")
    pulled.sub_(total * work.origins).add_(total * work.squared - towards).mul_(work.inverse)
    left = work.along - pulled
    return left.scatter_(1, anchors, left.gather(1, anchors).masked_fill_(multipliers > 0, -torch.inf))
