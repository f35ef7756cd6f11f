"""The isotropic threats: l2 and l-infinity norms of the perturbation, in pixels of [0, 1]."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from threat_specification.base import BoundThreat, Threat, check_delta, check_images, refuse_non_finite

BISECTIONS = 60  # steps that halve the interval of the factor s; float64 gains nothing from more


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
        """Nearest point, in closed form, since the ball is a box."""
        refuse_non_finite("delta", delta)
        lower, upper = self.bounds(lower, upper)
        return torch.minimum(torch.maximum(delta, lower.clamp_min(-threshold)), upper.clamp_max(threshold))


class BoundL2(BoundNorm):
    """||delta||_2."""

    order = 2.0

    def project(
        self, delta: Tensor, threshold: float, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Tensor:
        """Nearest point of the ball and the bounds.

        By the KKT conditions it is clip(delta * s, lower, upper) with the largest s <= 1 that lies in the ball.
        """
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
    """A norm of the perturbation; its sublevel sets are balls."""

    def radius(self, power: float) -> float:
        """Radius per pixel for attacks in a ball of this power, as a second bound; infinite for none."""
        return math.inf

    @abstractmethod
    def usual_change(self, power: float, num_pixels: int) -> float:
        """Change of each pixel in a perturbation on the boundary of the ball that changes all pixels equally."""


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
    """Euclidean norm of the change."""

    name = "L2"

    def usual_change(self, power: float, num_pixels: int) -> float:
        return power / math.sqrt(num_pixels)

    def bind(self, examples: Tensor, labels: Tensor) -> BoundL2:
        check_images(examples, labels)
        return BoundL2(examples.float())
