"""APGD in the l2 ball inscribed in the set: all its points are in the set, whatever the threat's projection does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from threat_specification.attacks.apgd import ascend_from
from threat_specification.attacks.base import AttackResult, AttackSet, Task, per_image
from threat_specification.base import BoundThreat
from threat_specification.intersection import BoundIntersection
from threat_specification.norms import BoundL2, BoundLinf


def _radius_beside_bounds(bound: BoundThreat) -> Tensor | None:
    """The inscribed radius of all members except l-inf balls, which are already part of the bounds."""
    if not isinstance(bound, BoundIntersection):
        return bound.inscribed_radius()
    others = [(member, level) for member, level in bound.members if type(member) is not BoundLinf]
    return BoundIntersection(bound.examples, others or bound.members).inscribed_radius()


@dataclass(frozen=True)
class Ball(AttackSet):
    """The set {||delta||_2 <= length} with the bounds of another set; `length` is [B,1,1,1], one for each example."""

    length: Tensor

    def project(self, delta: Tensor) -> Tensor:
        # The projection onto a ball takes one threshold for all examples, so divide everything by the length.
        unit = self.bound.project(delta / self.length, 1.0, self.lower / self.length, self.upper / self.length)
        return torch.minimum(torch.maximum(unit * self.length, self.lower), self.upper)


def l2_inscribed(task: Task) -> AttackResult:
    """Run l2-APGD in the largest known ball inside {threat <= threshold}, with the bounds of the set.

    Does nothing if the threat does not know this ball (its `inscribed_radius` is None) or if the threshold is 0.
    """
    allowed, examples = task.allowed, task.examples
    radius = _radius_beside_bounds(allowed.bound)
    if radius is None or allowed.threshold == 0:
        return AttackResult.none(allowed.origin)
    whole_box = allowed.reach.flatten() * examples[0].numel() ** 0.5
    length = per_image(torch.minimum(radius * allowed.threshold, whole_box).clamp_min(1e-9))
    ball = Ball(BoundL2(examples), 1.0, allowed.lower, allowed.upper, length)
    start = torch.zeros_like(examples)
    return ascend_from(start, replace(task, allowed=ball), "ce", size=length / examples[0].numel() ** 0.5)
