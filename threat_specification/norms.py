"""The isotropic threats: l2 and l-infinity norms of the perturbation, in pixels of [0, 1]."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from threat_specification.base import BoundThreat, Threat, check_delta, check_images, refuse_non_finite

BISECTIONS = 60  # halves the interval of the multiplier until float64 has no more digits to give


class BoundNorm(BoundThreat):
    """||delta||_order at fixed examples."""

    order: float

    def inscribed_radius(self) -> Tensor:
        return torch.ones(len(self.examples), device=self.examples.device)

    def evaluate(self, delta: Tensor) -> Tensor:
        check_delta(delta, self.examples)
        norm = torch.linalg.vector_norm(delta.flatten(1), self.order, dim=1)
        refuse_non_finite("delta", norm)
        return norm


class BoundLinf(BoundNorm):
    """||delta||_inf."""

    order = math.inf
    steepest = "sign"

    def project(
        self, delta: Tensor, threshold: float, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Tensor:
        """Nearest point, in closed form: the ball is a box."""
        refuse_non_finite("delta", delta)
        lower, upper = self.bounds(lower, upper)
        return torch.minimum(torch.maximum(delta, lower.clamp_min(-threshold)), upper.clamp_max(threshold))


class BoundL2(BoundNorm):
    """||delta||_2."""

    order = 2.0

    def project(
        self, delta: Tensor, threshold: float, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Tensor:
        """Nearest point of ball and box: clip(delta * s, lower, upper) for the largest s <= 1 that fits (KKT)."""
        refuse_non_finite("delta", delta)
        lower, upper = self.bounds(lower, upper)

        def shrunk(factor: Tensor) -> Tensor:
            return torch.minimum(torch.maximum(delta * factor.to(delta.dtype).view(-1, 1, 1, 1), lower), upper)

        clipped = torch.minimum(torch.maximum(delta, lower), upper)
        outside = self.evaluate(clipped) > threshold
        if not bool(outside.any()):
            return clipped
        low = torch.zeros(len(delta), dtype=torch.float64, device=delta.device)
        high = torch.ones_like(low)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            fits = shrunk(middle).double().flatten(1).norm(dim=1) <= threshold
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return torch.where(outside.view(-1, 1, 1, 1), shrunk(low), clipped)


class Norm(Threat):
    """A norm of the perturbation: its sets are balls."""

    def radius(self, power: float) -> float:
        """How far a ball of this power lets a single pixel move, as a bound beside the ball's own."""
        return math.inf

    @abstractmethod
    def usual_change(self, power: float, num_pixels: int) -> float:
        """Change of each pixel of a perturbation on the border that changes all alike."""


class Linf(Norm):
    """Largest change of a pixel."""

    name = "Linf"

    def radius(self, power: float) -> float:
        return power

    def usual_change(self, power: float, num_pixels: int) -> float:
        return power

    def bind(self, examples: Tensor, labels: Tensor) -> BoundLinf:
        check_images(examples, labels)
        return BoundLinf(examples.float())


class L2(Norm):
    """Euclidean length of the change."""

    name = "L2"

    def usual_change(self, power: float, num_pixels: int) -> float:
        return power / math.sqrt(num_pixels)

    def bind(self, examples: Tensor, labels: Tensor) -> BoundL2:
        check_images(examples, labels)
        return BoundL2(examples.float())
