"""The isotropic threats: l2 and l-infinity norms of the perturbation, for pixels in [0, 1]."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from threat_specification.ball import nearest_in_ball
from threat_specification.base import BoundThreat, Threat, check_delta, check_images, refuse_non_finite

RADIUS = 8 / 255  # default second bound, in l-inf, for a threat whose sets may be unbounded
ROUNDING = 1.2e-7  # relative error of a pixel after two roundings to float32
STEPS = 6  # of Newton's method for the factor s, from one look at the result to the next
MOST_STEPS = 100  # about 10 are usual


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
    """||delta||_inf over the pixels that are counted (`BoundThreat.counted`), by default all."""

    order = math.inf
    steepest = "sign"

    def __init__(self, examples: Tensor, counted: Tensor | None = None) -> None:
        super().__init__(examples)
        self._counted = counted

    @property
    def counted(self) -> Tensor | None:
        return self._counted

    def usual_change(self, threshold: float) -> float | None:
        return threshold if self._counted is None else None  # a free background may change by more

    def evaluate(self, delta: Tensor) -> Tensor:
        return super().evaluate(delta if self._counted is None else delta * self._counted.view_as(delta))

    def tighten(self, lower: Tensor, upper: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """The bounds of every pixel where the ball, which is a box, cuts given ones."""
        inside = lower.clamp_min(-threshold), upper.clamp_max(threshold)
        if self._counted is None:
            return inside
        counts = self._counted.view_as(self.examples) > 0
        return torch.where(counts, inside[0], lower), torch.where(counts, inside[1], upper)

    def project(
        self, delta: Tensor, threshold: float, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Tensor:
        """Nearest point, in closed form, since the ball is a box."""
        check_delta(delta, self.examples)
        refuse_non_finite("delta", delta)
        lower, upper = self.tighten(*self.bounds(lower, upper), threshold)
        return torch.minimum(torch.maximum(delta, lower), upper)


class BoundL2(BoundNorm):
    """||delta||_2."""

    order = 2.0

    def usual_change(self, threshold: float) -> float:
        return threshold / math.sqrt(self.examples[0].numel())

    def project(
        self, delta: Tensor, threshold: float, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Tensor:
        """Nearest point of the ball and the bounds.

        By the KKT conditions it is clip(delta * s, lower, upper) with the largest s <= 1 that lies in the ball.
        """
        check_delta(delta, self.examples)
        lower, upper = self.bounds(lower, upper)
        clipped = torch.minimum(torch.maximum(delta, lower), upper)
        outside = torch.linalg.vector_norm(clipped.flatten(1), 2, dim=1) > threshold
        finite, any_outside = torch.stack((delta.sum().isfinite(), outside.any())).tolist()
        if not finite:
            refuse_non_finite("delta", delta)
        if not any_outside:
            return clipped
        factor = _largest_factor(
            delta.flatten(1),
            lower.expand_as(delta).flatten(1),
            upper.expand_as(delta).flatten(1),
            threshold * (1 - ROUNDING),
        )
        shrunk = torch.minimum(torch.maximum(delta * factor.to(delta.dtype).view(-1, 1, 1, 1), lower), upper)
        return torch.where(outside.view(-1, 1, 1, 1), shrunk, clipped)

    def project_beside(
        self, delta: Tensor, threshold: float, lower: Tensor, upper: Tensor, centre: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The nearest point of the ball in a box that need not contain 0, and [B] bool: if there is one."""

        def into_box(point: Tensor) -> Tensor:
            return torch.minimum(torch.maximum(point, lower), upper)

        point = nearest_in_ball(into_box, delta, threshold, into_box(torch.zeros_like(delta)))
        return self._towards(centre, point, threshold)


def _largest_factor(delta: Tensor, lower: Tensor, upper: Tensor, threshold: float) -> Tensor:
    """The largest s with ||clip(s delta, lower, upper)||_2 <= threshold, [B] float64, for delta [B, D] outside.

    The squared norm, as a function of s^2, is concave and piecewise linear: at s, the pixels that are not clipped
    contribute s^2 times B, and the others A. Newton's steps s^2 = (threshold^2 - A) / B therefore rise from the s of no
    clipping to the solution and never pass it.
    """
    squares = delta.double().square()
    walls = torch.where(delta > 0, upper, -lower).double().square()
    square = threshold**2 / squares.sum(1, keepdim=True).clamp_min(1e-300)
    for number in range(1, MOST_STEPS + 1):
        free = square * squares < walls
        slope = torch.where(free, squares, 0).sum(1, keepdim=True)
        fixed = torch.where(free, 0, walls).sum(1, keepdim=True)
        before, square = square, ((threshold**2 - fixed) / slope.clamp_min(1e-300)).clamp(0, 1)
        if number % STEPS == 0 and not bool((square > before * (1 + 1e-12)).any()):
            break
    return square.sqrt().squeeze(1)


class Norm(Threat):
    """A norm of the perturbation; its sublevel sets are balls."""

    bounded = True

    def radius(self, power: float) -> float:
        """Radius per pixel for attacks in a ball of this power, as a second bound; infinite for none."""
        return math.inf

    @abstractmethod
    def usual_change(self, power: float, num_pixels: int) -> float:
        """Change of each pixel in a perturbation on the boundary of the ball that changes all pixels equally."""


def default_radius(threat: Threat) -> float:
    """The second bound, in l-inf, where none is given: RADIUS, or none (inf) for a threat that needs none."""
    return math.inf if threat.bounded else RADIUS


class Linf(Norm):
    """Largest change of a pixel, for pixels in [0, 1]: 8/255 is eight steps of an 8-bit image.

    >>> images, labels = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    >>> nonisotropic.Linf().evaluate(images, labels, images + torch.tensor([0.0, 0.25]))
    tensor([0.2500])
    >>> nonisotropic.Linf().project(images, labels, torch.ones(1, 1, 2, 2), threshold=0.25).max()
    tensor(0.7500)
    """

    name = "Linf"

    def radius(self, power: float) -> float:
        return power

    def usual_change(self, power: float, num_pixels: int) -> float:
        return power

    def bind(self, examples: Tensor, labels: Tensor) -> BoundLinf:
        check_images(examples, labels)
        return BoundLinf(examples.float())


class L2(Norm):
    """Euclidean norm of the change over all pixels and channels, for pixels in [0, 1].

    >>> images, labels = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    >>> nonisotropic.L2().evaluate(images, labels, images + 0.25)
    tensor([0.5000])
    """

    name = "L2"

    def usual_change(self, power: float, num_pixels: int) -> float:
        return power / math.sqrt(num_pixels)

    def bind(self, examples: Tensor, labels: Tensor) -> BoundL2:
        check_images(examples, labels)
        return BoundL2(examples.float())
