"""Multipliers of the projection onto {PD <= threshold} without bounds, computed without access to the pixels.

Without the bounds, the dual of the projection,

    min over l >= 0 of  1/2 l^T Q l - l^T (c - threshold),      Q_ij = <v_i, v_j>,  c = V d,

depends on the anchors only through their Gram matrix G: <a_i - x, a_j - x> = G_ij - g_i - g_j + <x, x> with g = A x
(and, in the tangent form, through their products with the tangents).
If the point d - V^T l satisfies the bounds, it is the projection onto both; if not, it is a good warm start.

Shapes: R examples, N anchors, K anchors in the working set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from threat_specification.projected_displacement.directions import UnsafeDirections
from threat_specification.projected_displacement.nnls import nnls

ENTERING = 6  # minimum number of anchors that enter the working set at a time: most of a larger number would leave
LOOKS = 60  # maximum number of checks of all anchors; an example that needs more gets no guess


@dataclass
class _Examples:
    """Products of examples and anchors that replace the pixels; images are centred.

    numbers  [R] numbers of the examples              along    [R, N] <d, v_j>; -inf where masked
    inverse  [R, N] 1 / (beta w ||u_j||^2), or 0      origins  [R, N] <a_j, x>
    squared  [R, 1] <x, x>                            reach    [R, 1] threshold plus the error of displacements
    tangent  [R, N, k] what the tangent form removes from products, as `along_tangents` there; k = 0 in other forms
    """

    numbers: Tensor
    along: Tensor
    inverse: Tensor
    origins: Tensor
    squared: Tensor
    reach: Tensor
    tangent: Tensor

    def take(self, index: Tensor) -> _Examples:
        return _Examples(*(getattr(self, field.name)[index] for field in fields(self)))


def halfspace_multipliers(
    bound: UnsafeDirections, numbers: Tensor, along: Tensor, noise: Tensor, threshold: float
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Multipliers of the projection p of d onto {<p, v_j> <= threshold for all j}.

    Yields examples [r], anchors [r, K], their multipliers [r, K] float64, and the largest <p, v_j> of the anchors with
    multiplier 0, [r]. Examples are yielded as soon as they are finished, so that hard ones do not delay easy ones.

    numbers  [R] examples of the bound threat, which must have a Gram matrix
    along    [R, N] <d, v_j>, -inf where masked
    noise    [R] float32 error of displacements; a smaller violation of the threshold is ignored
    """
    work = _Examples(
        numbers,
        along,
        bound.inverse[numbers],
        bound.origins[numbers],
        bound.squared_lengths[numbers].unsqueeze(1),
        (threshold + noise).unsqueeze(1),
        bound.along_tangents[numbers],
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
        # Anchors in the set must not enter twice: they rank below masked anchors.
        left = left.clamp_min(torch.finfo(left.dtype).min).scatter_(1, anchors, -torch.inf)
        entering = left.topk(count, dim=1).indices
        anchors = torch.cat([anchors, entering], 1)
        multipliers = torch.nn.functional.pad(multipliers, (0, count))


def _minimum(bound, work: _Examples, anchors: Tensor, start: Tensor, threshold: float) -> Tensor:
    """Multipliers at the minimum of the dual over a working set, [R, K]; 0 for masked anchors."""
    hessian = bound.curvature(work.numbers, anchors).double()
    masked = work.inverse.gather(1, anchors) == 0
    hessian.diagonal(dim1=1, dim2=2).masked_fill_(masked, 1)
    linear = (work.along.gather(1, anchors).double() - threshold).masked_fill_(masked, -1)
    return nnls(hessian, linear, start)


def _left(gram: Tensor, work: _Examples, anchors: Tensor, multipliers: Tensor) -> Tensor:
    """<d - V^T l, v_j> for the anchors with multiplier 0, [R, N]; -inf for the others and where masked."""
    weights = multipliers.float() * work.inverse.gather(1, anchors)
    total = weights.sum(1, keepdim=True)
    towards = (weights * work.origins.gather(1, anchors)).sum(1, keepdim=True)
    # This reads only K rows of G for each example.
    pulled = torch.nn.functional.embedding_bag(anchors, gram, per_sample_weights=weights, mode="sum")
    pulled.sub_(total * work.origins).add_(total * work.squared - towards)
    if work.tangent.shape[2]:
        chosen = work.tangent.gather(1, anchors.unsqueeze(2).expand(-1, -1, work.tangent.shape[2]))
        removed = torch.bmm(weights.unsqueeze(1), chosen)
        pulled.sub_(torch.bmm(removed, work.tangent.transpose(1, 2)).squeeze(1))
    pulled.mul_(work.inverse)
    left = work.along - pulled
    return left.scatter_(1, anchors, left.gather(1, anchors).masked_fill_(multipliers > 0, -torch.inf))
