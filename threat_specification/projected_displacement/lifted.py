"""The half-spaces of PD for noise and weights of given changes of the image, as the exact projection needs them.

For changes s_1, ..., s_K of x, a point is (n, z): noise, and weights times a unit. With c = z / unit, the perturbation
is n + sum_k c_k s_k, so that PD <= threshold reads

    <n, v_j> + sum_k z_k <s_k, v_j> / unit <= threshold      for all anchors j:

again half-spaces, each with K more coordinates. One more bounds the sum of the weights.

Shapes: B batch, N anchors, D = C*H*W, K changes; R chosen examples with A chosen anchors each; P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foundations.arithmetic import full_precision
from threat_specification.projected_displacement.buffers import Buffers
from threat_specification.projected_displacement.directions import UnsafeDirections
from threat_specification.projected_displacement.projection import project_exact
from threat_specification.projected_displacement.warm_start import WarmStart


class LiftedDirections(UnsafeDirections):
    """v_j(x) with the products of the changes beside them; number N stands for the sum of the weights.

    along     [B, K, N] <s_k, v_j> / unit, 0 where masked
    sums      [B] the sum's half-space is sums * sum(z) <= threshold
    """

    has_gram = False  # the products of lifted directions depend on the changes

    def __init__(self, base: UnsafeDirections, shifts: Tensor, unit: Tensor) -> None:
        """Take the directions at the images, the changes [B, K, D], and the unit [B, 1]."""
        self.base, self.examples, self.row_error = base, base.examples, base.row_error
        along = torch.stack([base.displacements(shift) for shift in shifts.unbind(1)], 1)
        self.along = along.masked_fill(base.masked.unsqueeze(1), 0) / unit.unsqueeze(2)
        self.sums = torch.ones_like(base.longest)
        self.longest = base.longest
        self.warm: WarmStart | None = None

    def project(
        self, point: Tensor, threshold: float, largest: Tensor, lower: Tensor, upper: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The nearest point (n, z) with PD <= threshold, sum(z) <= largest [B] and the bounds, all [B,1,1,D+K].

        Returns it, and the numbers of the examples that the solver did not solve.
        """
        self.sums = threshold / largest
        of_sum = self.sums * self.along.shape[1] ** 0.5
        beside = self.along.norm(dim=1).amax(1)
        self.longest = torch.maximum((self.base.longest.square() + beside.square()).sqrt(), of_sum)
        if self.warm is None:
            self.warm = WarmStart.empty(self)
        self.warm.longest = self.longest
        with full_precision(self.examples.device.type):
            return project_exact(self, point, threshold, lower, upper, self.warm)

    def directions(self, which: Tensor, anchors: Tensor) -> Tensor:
        """Rows of P pairs, [P, D + K]."""
        is_sum, inner = self._sorted(anchors)
        rows = self.base.directions(which, inner).masked_fill(is_sum.unsqueeze(1), 0)
        beside = torch.where(is_sum.unsqueeze(1), self.sums[which].unsqueeze(1), self.along[which, :, inner])
        return torch.cat([rows, beside], 1)

    def working_rows(self, numbers: Tensor, anchors: Tensor, buffers: Buffers | None = None) -> tuple[Tensor, Tensor]:
        """Rows of A anchors of each of R examples, [R, A, D + K], and their lengths, [R, A] float64."""
        is_sum, inner = self._sorted(anchors)
        rows, norms = self.base.working_rows(numbers, inner, buffers)
        count = self.along.shape[1]
        beside = self.along[numbers].gather(2, inner.unsqueeze(1).expand(-1, count, -1)).transpose(1, 2)
        beside = torch.where(is_sum.unsqueeze(2), self.sums[numbers].view(-1, 1, 1), beside)
        norms = (norms.masked_fill(is_sum, 0).square() + beside.double().square().sum(2)).sqrt()
        return torch.cat([rows.masked_fill(is_sum.unsqueeze(2), 0), beside], 2), norms

    def displacements(self, flat: Tensor, rows: Tensor | None = None, checked: bool = True) -> Tensor:
        """<p, row> of points [R, D + K] for all anchors and the sum of the weights, [R, N + 1]; -inf where masked."""
        along, sums = (self.along, self.sums) if rows is None else (self.along[rows], self.sums[rows])
        count = along.shape[1]
        noise, weights = flat[:, :-count].contiguous(), flat[:, -count:]
        found = self.base.displacements(noise, rows, checked)
        found += torch.bmm(weights.unsqueeze(1), along).squeeze(1)
        return torch.cat([found, (weights.sum(1) * sums).unsqueeze(1)], 1)

    def _sorted(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """A mask of the numbers that stand for the sum of the weights, and the numbers, any anchor's in their place."""
        count = self.along.shape[2]
        return anchors == count, anchors.clamp_max(count - 1)
