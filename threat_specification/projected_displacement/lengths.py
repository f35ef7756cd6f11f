"""Lengths of the differences u_j = a_j - x between images and all anchors, without a loss of digits.

They come from products with all anchors. But a small difference of large products has few digits left: where this
happens to a pair of an example and an anchor, its length comes from the raw images.

Shapes: B batch, N anchors, D = C*H*W, k tangents; P pairs of example and anchor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from threat_specification.projected_displacement.anchor_matrix import AnchorMatrix
from threat_specification.projected_displacement.pace import pace_of
from threat_specification.projected_displacement.short_sums import exact_products
from threat_specification.projected_displacement.tangents import TangentMetric

# Let r = ||a - x||^2 / (||a||^2 + ||x||^2). The rounding error of ||a||^2 - 2<a,x> + ||x||^2 grows like 1 / r. If r is
# below this value, the difference a - x is computed instead.
NEAR_DISTANCE = 0.3
NEAR_TANGENT = 0.1  # the same of the tangent form, whose lengths are shorter, while its rows cost more


@dataclass
class Differences:
    """u_j of chosen pairs, [P, D], from the uncentred images; with a mask [B, D] 0/1, m u_j."""

    examples: Tensor  # [B, C, H, W]
    matrix: AnchorMatrix
    mask: Tensor | None = None

    def of(self, which: Tensor, anchors: Tensor) -> Tensor:
        """Those of example numbers [P] and anchor numbers [P]."""
        rows = self.matrix.rows(anchors).sub_(self.examples.flatten(1)[which])
        return rows if self.mask is None else rows.mul_(self.mask[which])

    def fit_piece(self, pairs: int) -> bool:
        """True if all differences may be in memory together."""
        return 4 * pairs * self.matrix.shape[1] <= pace_of(self.examples.device).piece_bytes

    def pieces(self, pairs: int, vectors: int = 1) -> Iterator[slice]:
        """Slices of a list of pairs, so small that `vectors` vectors for each pair fit into memory together."""
        step = max(1, pace_of(self.examples.device).piece_bytes // (4 * self.matrix.shape[1] * vectors))
        return (slice(start, min(start + step, pairs)) for start in range(0, pairs, step))


def squared_lengths(differences: Differences, centred: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """||u_j||^2, and the magnitude of the terms that cancel in it; [B, N] float64.

    centred  [B, D] images less the centre of the anchor matrix
    masked   [B, N] pairs that do not count

    Examples with an empty mask have no near pairs; their lengths are 0 already.
    """
    matrix, mask = differences.matrix, differences.mask
    of_anchors = matrix.squared_norms.view(1, -1) if mask is None else matrix.square_products(mask).double()
    inside = centred if mask is None else centred * mask
    scale = of_anchors + inside.square().sum(1, dtype=torch.float64).view(-1, 1)
    squared = scale - 2 * matrix.exact_products(inside)
    which, anchors = ((squared < NEAR_DISTANCE * scale) & ~masked).nonzero(as_tuple=True)
    for pair in differences.pieces(len(which)):
        rows = differences.of(which[pair], anchors[pair])
        squared[which[pair], anchors[pair]] = rows.square_().sum(1, dtype=torch.float64)
    # Masked pairs are not computed anew: an anchor that equals the image may be a little below 0.
    return squared.clamp_min_(0), scale


@dataclass
class TangentLengths:
    """Lengths of u_j in the metric M of the tangent form.

    inner   <u_j, M u_j>, [B, N] float64
    outer   <M u_j, M u_j>, [B, N] float64
    along   B u_j, [B, k, N] float64
    """

    inner: Tensor
    outer: Tensor
    along: Tensor

    @classmethod
    def of(
        cls,
        differences: Differences,
        centred: Tensor,
        masked: Tensor,
        metric: TangentMetric,
        squared: Tensor,
        scale: Tensor,
    ) -> TangentLengths:
        """From ||u_j||^2 and the magnitude of the terms that cancel in it."""
        matrix, basis = differences.matrix, metric.basis
        along = matrix.exact_products(basis.flatten(0, 1)).view(*basis.shape[:2], matrix.shape[0])
        along -= exact_products(centred.unsqueeze(1), basis).transpose(1, 2)
        inner, outer = squared.clone(), squared.clone()
        for i, (once, twice) in enumerate(zip(metric.shrink.T, metric.both.T, strict=True)):
            square = along[:, i].square()
            inner -= once.unsqueeze(1) * square
            outer -= twice.unsqueeze(1) * square
        which, anchors = ((outer < NEAR_TANGENT * scale) & ~masked).nonzero(as_tuple=True)
        for pair in differences.pieces(len(which), 2 + basis.shape[1]):
            place = which[pair], anchors[pair]
            rows = differences.of(*place)
            shortened = metric.shorten(rows.clone().unsqueeze(1), place[0]).squeeze(1)
            inner[place] = (rows * shortened).sum(1, dtype=torch.float64)
            outer[place] = shortened.square_().sum(1, dtype=torch.float64)
        return cls(inner.clamp_min_(0), outer.clamp_min_(0), along)  # as in `squared_lengths`

    def scaled(self, metric: TangentMetric) -> Tensor:
        """The r, [B, N, k], of <M u_i, M u_j> = <u_i, u_j> - <r_i, r_j>."""
        return (self.along * metric.both.sqrt().unsqueeze(2)).transpose(1, 2).float().contiguous()
