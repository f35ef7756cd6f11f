"""The metric of the tangent form: changes along the tangents of an image cost little.

A tangent is the first-order change of an image x by something that keeps its meaning, such as more contrast or a small
rotation (tangent distance: Simard, LeCun, Denker 1993). With the tangents t_1..t_n as the rows of T [n, D], each of
length 1,

    M(x) = (I + T^T T / lambda)^-1 = I - B^T diag(s) B

where the rows of B [k, D] are orthonormal, and s is nearly 1 for directions that the tangents share and nearly 0 for
directions that they hardly have. As lambda grows, M tends to I.

Shapes: B batch, N anchors, D = C*H*W, k = n tangents; R chosen examples with K chosen anchors each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from foundations.arithmetic import full_precision
from foundations.errors import check_number, look_up
from foundations.lazy import load_object
from threat_specification.perturbations.filters import gaussian_kernel
from threat_specification.projected_displacement.anchor_matrix import AnchorMatrix
from threat_specification.projected_displacement.pace import pace_of
from threat_specification.registry import TANGENTS

SHORTEST = 1e-4  # l2; a shorter tangent is dropped: an even image has no contrast to change
EDGE_SIGMA = 0.7  # of the blur before derivatives, in pixels
BLUR_SIGMA = 1.0  # of the blur that is a tangent, in pixels
MADE_AT_ONCE = 16  # images' worth of float64 memory that making the tangents of one image takes
LIGHTEST = 0.01  # smallest lambda: with less, float32 rows lose their digits where an anchor is a tangent move away
INDEPENDENT = 1e-12  # smallest eigenvalue of T T^T whose direction can be computed


def brightness(images: Tensor) -> Tensor:
    """All pixels brighter alike, [B,1,C,H,W]."""
    return torch.ones_like(images).unsqueeze(1)


def contrast(images: Tensor) -> Tensor:
    """More contrast: the image less its mean, [B,1,C,H,W]."""
    return (images - images.mean((1, 2, 3), keepdim=True)).unsqueeze(1)


def affine(images: Tensor) -> Tensor:
    """Affine maps of the plane (shift, scale, rotation, shear), one for all channels, [B,6,C,H,W]."""
    smooth = F.pad(_blurred(images, EDGE_SIGMA), (1, 1, 1, 1), mode="replicate")
    down = (smooth[..., 2:, 1:-1] - smooth[..., :-2, 1:-1]) / 2
    right = (smooth[..., 1:-1, 2:] - smooth[..., 1:-1, :-2]) / 2
    rows, columns = (torch.linspace(-1, 1, side).to(images) for side in images.shape[2:])
    moves = (1, rows.view(-1, 1), columns)
    return torch.stack([edge * move for edge in (right, down) for move in moves], 1)


def blur(images: Tensor) -> Tensor:
    """A little blur, [B,1,C,H,W]."""
    return (_blurred(images, BLUR_SIGMA) - images).unsqueeze(1)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur as products with a matrix for each side: in float64, convolutions are several times as slow."""
    down, right = (_blur_matrix(side, sigma).to(images) for side in images.shape[2:])
    return down @ images @ right.T


def _blur_matrix(side: int, sigma: float) -> Tensor:
    """The blur of a line of `side` pixels with replicated ends, [side, side] float64; cut after four deviations."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    sources = (torch.arange(side).unsqueeze(1) + offsets).clamp(0, side - 1)
    kernel = gaussian_kernel(sigma, radius, torch.float64).expand_as(sources)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, sources, kernel)


@dataclass(frozen=True)
class Tangents:
    """The names of tangents, and the weight lambda: what a change along them still costs."""

    names: tuple[str, ...]
    weight: float

    @classmethod
    def of(cls, names: bool | str | Sequence[str], weight: float) -> Tangents | None:
        """From True (all of TANGENTS), "all", names (a sequence, or comma-separated); None if there are none."""
        if isinstance(names, bool):
            names = "all" if names else ()
        if isinstance(names, str):
            names = list(TANGENTS) if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
        for name in names:
            look_up(TANGENTS, name, "tangent")
        check_number("tangent_weight", weight, LIGHTEST)
        return cls(tuple(dict.fromkeys(names)), weight) if names else None

    def metric(self, images: Tensor, mask: Tensor | None = None, matrix: AnchorMatrix | None = None) -> TangentMetric:
        """The metric at images [B,C,H,W]; with a mask [B, D] 0/1, that of the masked tangents.

        matrix   of the anchors; if processes share it, all take the metric of the first
        """
        step = max(1, pace_of(images.device).piece_bytes // (8 * MADE_AT_ONCE * images.shape[1:].numel()))
        parts = [self._of_part(images[i : i + step], mask, i) for i in range(0, len(images), step)]
        if not parts:
            return TangentMetric(
                images.new_zeros(0, 1, images.shape[1:].numel()).double(), images.new_zeros(0, 1).double()
            )
        made = [torch.cat(each) for each in zip(*parts, strict=True)]
        return TangentMetric(*(made if matrix is None else map(matrix.of_first, made)))

    def _of_part(self, images: Tensor, mask: Tensor | None, start: int) -> tuple[Tensor, Tensor]:
        """Orthonormal rows [b, n, D] and their s [b, n], float64."""
        made = torch.cat([load_object(TANGENTS[name])(images.double()) for name in self.names], 1).flatten(2)
        if mask is not None:
            made *= mask[start : start + len(images)].unsqueeze(1)
        length = made.norm(dim=2, keepdim=True)
        made *= torch.where(length > SHORTEST, 1 / length, 0)
        strength, vectors = torch.linalg.eigh(made @ made.transpose(1, 2))
        known = strength > INDEPENDENT
        scale = torch.where(known, strength, 1).rsqrt() * known
        basis = (vectors * scale.unsqueeze(1)).transpose(1, 2) @ made
        return basis, torch.where(known, strength / (self.weight + strength), 0)


class _Applied(torch.autograd.Function):
    """M v in full precision, also where gradients are computed: M is its own transpose."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, basis: Tensor, shrink: Tensor) -> Tensor:
        ctx.basis, ctx.shrink = basis, shrink
        return _shortened(vectors, basis, shrink)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _shortened(gradient, ctx.basis, ctx.shrink), None, None


def _shortened(vectors: Tensor, basis: Tensor, shrink: Tensor) -> Tensor:
    with full_precision(vectors.device.type):
        rows = vectors.unsqueeze(1)
        along = torch.bmm(rows, basis.transpose(1, 2)) * shrink.unsqueeze(1)
        return torch.baddbmm(rows, along, basis, alpha=-1).squeeze(1)


class TangentMetric:
    """M at fixed images.

    exact   [B, k, D] float64 rows of B; rows of 0 where tangents were dropped
    basis   the same in float32
    shrink  [B, k] float64 s

    Errors of B v are errors along tangents, where points of a set reach far, since changes along them cost little. So
    where vectors define a set, M v is computed in float64: how much float32 sums lose, processors differ in.
    """

    def __init__(self, exact: Tensor, shrink: Tensor) -> None:
        self.exact, self.basis, self.shrink = exact, exact.float(), shrink
        self._quick_shrink = shrink.float()

    def apply(self, vectors: Tensor, numbers: Tensor | None = None) -> Tensor:
        """M v for one vector of each example, [B, D]; or of each of the examples `numbers` [R], [R, D]; quickly."""
        basis, shrink = self.basis, self._quick_shrink
        if numbers is not None:
            basis, shrink = basis[numbers], shrink[numbers]
        return _Applied.apply(vectors, basis, shrink)

    def shorten(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """Replace K vectors v of each of the examples `numbers` [R], [R, K, D], by M v; returns them."""
        step = max(1, pace_of(rows.device).piece_bytes // max(1, 8 * rows[:1].numel()))
        for part, which in zip(rows.split(step), numbers.split(step), strict=True):
            vectors, basis = part.double(), self.exact[which]
            along = torch.bmm(vectors, basis.transpose(1, 2)).mul_(self.shrink[which].unsqueeze(1))
            part.copy_(vectors.baddbmm_(along, basis, alpha=-1))
        return rows

    @property
    def both(self) -> Tensor:
        """The s of two applications of M: M M = I - B^T diag(2 s - s^2) B, [B, k]."""
        return self.shrink * (2 - self.shrink)
