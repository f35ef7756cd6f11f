"""The Projected Displacement threat at fixed images and labels; `threat.py` defines it.

Shapes: B batch, N anchors, D = C*H*W.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foundations.arithmetic import full_precision
from foundations.errors import look_up
from threat_specification.base import BoundThreat, check_delta, check_threshold, refuse_non_finite
from threat_specification.projected_displacement.anchor_matrix import AnchorMatrix
from threat_specification.projected_displacement.directions import UnsafeDirections
from threat_specification.projected_displacement.dual_newton import ACCEPT
from threat_specification.projected_displacement.masks import BACKGROUNDS
from threat_specification.projected_displacement.projection import project_exact
from threat_specification.projected_displacement.tangents import Tangents
from threat_specification.projected_displacement.warm_start import WarmStart


class BoundProjectedDisplacement(UnsafeDirections, BoundThreat):
    """PD at fixed (x, y).

    warm       warm start of the exact projection, from the last one
    scaled     [B] how often the exact projection could not solve a row, so that its point was scaled instead
    """

    def __init__(
        self,
        examples: Tensor,
        labels: Tensor,
        matrix: AnchorMatrix,
        anchor_labels: Tensor,
        class_weights: Tensor | None = None,
        masks: Tensor | None = None,
        background: str = "frozen",
        projection: str = "exact",
        full_norms: bool = True,
        tangents: Tangents | None = None,
    ) -> None:
        """Take anchor_labels [N], class_weights [K, K], masks bool [B,1|C,H,W], and the threat's options."""
        super().__init__(examples, labels, matrix, anchor_labels, class_weights, masks, full_norms, tangents)
        self.background, self.projection = background, projection
        self.warm: WarmStart | None = None
        self.scaled = torch.zeros(len(examples), dtype=torch.int64, device=examples.device)

    @property
    def fallbacks(self) -> int:
        """The number of points that were scaled since the exact projection could not solve them."""
        return int(self.scaled.sum())

    def evaluate(self, delta: Tensor) -> Tensor:
        """PD of each perturbation, [B] float32; 0 if no anchor counts."""
        check_delta(delta, self.examples)
        return self.displacements(delta.flatten(1)).amax(1).clamp_min(0)

    @property
    def counted(self) -> Tensor | None:
        return self.mask if self.background == "free" else None

    def bounds(self, lower: Tensor | None, upper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The given bounds or the pixel box, changed outside the mask according to the threat's `background`."""
        lower, upper = super().bounds(lower, upper)
        if self.mask is None:
            return lower, upper
        inside = self.mask.view_as(self.examples) > 0
        return BACKGROUNDS[self.background](lower, upper, inside, self.examples.to(lower.dtype))

    def project(
        self,
        delta: Tensor,
        threshold: float,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
        method: str | None = None,
    ) -> Tensor:
        """A point with PD <= threshold inside the bounds; `method` is a key of PROJECTIONS (default: the threat's)."""
        check_delta(delta, self.examples)
        check_threshold(threshold)
        project = look_up(PROJECTIONS, method or self.projection, "projection")
        with full_precision(self.examples.device.type):
            return project(self, delta, threshold, lower, upper)

    def scale(
        self, delta: Tensor, threshold: float, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Tensor:
        """As that of every threat; NaN and infinity are refused first, since clipping would hide infinity."""
        refuse_non_finite("delta", delta)
        return super().scale(delta, threshold, lower, upper)

    def nearest(
        self, delta: Tensor, threshold: float, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Tensor:
        """The nearest point of the set; rows that Newton's method does not solve are scaled instead."""
        lower, upper = self.bounds(lower, upper)
        if self.warm is None:
            self.warm = WarmStart.empty(self)
        point, unsolved = project_exact(self, delta, threshold, lower, upper, self.warm)
        if len(unsolved):
            self.scaled[unsolved] += 1
            point[unsolved] = self.scale(delta, threshold, lower, upper)[unsolved]
        return point

    def project_beside(
        self, delta: Tensor, threshold: float, lower: Tensor, upper: Tensor, centre: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The nearest point to delta in {PD <= threshold} and a box that need not contain 0.

        Returns it, and [B] bool: False where the set is empty, or where Newton's method does not find the point.
        """
        if self.projection != "exact":
            return super().project_beside(delta, threshold, lower, upper, centre)
        self.warm = WarmStart.empty(self) if self.warm is None else self.warm
        with full_precision(self.examples.device.type):
            point, unsolved = project_exact(self, delta, threshold, lower, upper, self.warm, can_be_empty=True)
        found = torch.ones_like(self.scaled, dtype=torch.bool)
        found[unsolved] = False
        # The solver may set a point to 0 or shrink it by rounding, which can leave a box without 0.
        clipped = torch.minimum(torch.maximum(point, lower), upper)
        moved = (clipped != point).flatten(1).any(1)
        if bool((moved & found).any()):
            found &= ~moved | (self.evaluate(clipped) <= threshold * (1 + ACCEPT))
        return clipped, found


# segmented_norm -> whether the norm in the segmented form is that of all of a_j - x
FULL_NORMS = {"full": True, "masked": False}

PROJECTIONS: dict[str, Callable[..., Tensor]] = {
    "exact": BoundProjectedDisplacement.nearest,
    "scale": BoundProjectedDisplacement.scale,
}
