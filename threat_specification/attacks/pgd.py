"""Projected gradient descent inside a set {threat <= threshold} and per-pixel bounds (Madry et al. 2018).

Projected in every step: what the model sees is inside the set throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from threat_specification.base import BoundThreat

Classifier = Callable[[Tensor], Tensor]  # [B,C,H,W] in [0, 1] -> [B,K] logits


@dataclass(frozen=True)
class AttackSet:
    """Where an attack may go: {threat <= threshold} and lower <= delta <= upper, which keeps pixels in [0, 1]."""

    bound: BoundThreat
    threshold: float
    lower: Tensor
    upper: Tensor
    options: dict[str, Any] = field(default_factory=dict)  # of the threat's projection

    @classmethod
    def within(cls, bound: BoundThreat, threshold: float, radius: float, **options: Any) -> AttackSet:
        """The set with an l-inf radius as its second bound (inf: the pixel box alone)."""
        examples = bound.examples
        lower, upper = bound.bounds((-examples).clamp_min(-radius), (1 - examples).clamp_max(radius))
        return cls(bound, threshold, lower, upper, options)

    def project(self, delta: Tensor) -> Tensor:
        """A point of the set near delta."""
        return self.bound.project(delta, self.threshold, self.lower, self.upper, **self.options)

    def between(self, fraction: Tensor) -> Tensor:
        """The point of the box at a fraction in [0, 1] between its bounds, brought into the set."""
        return self.project(torch.lerp(self.lower, self.upper, fraction))


def pgd(
    model: Classifier, labels: Tensor, allowed: AttackSet, start: Tensor, steps: int, step_size: float
) -> tuple[Tensor, Tensor]:
    """Sign-gradient ascent of the cross-entropy from `start` (a point of the set).

    Returns broken [B] bool, and delta [B,C,H,W]: the first point at which the model failed, else the last one.
    The model's mode and its weights' gradients are left alone.
    """
    examples = allowed.bound.examples
    delta, found = start, start.clone()
    broken = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for step in range(steps + 1):
        inputs = (examples + delta).clamp(0, 1).detach().requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            logits = model(inputs)
        new = (logits.argmax(1) != labels) & ~broken
        found = torch.where((new | ~broken).view(-1, 1, 1, 1), delta, found)
        broken = broken | new
        if step == steps or bool(broken.all()):
            break
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), inputs)
        delta = allowed.project(delta + step_size * gradient.sign())
    return broken, found
