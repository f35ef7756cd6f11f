"""Projected gradient descent inside a set (Madry et al. 2018), and the post-hoc baseline that it is compared with.

Projected in every step: what the model sees is inside the set throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from threat_specification.attacks.base import AttackSet, Attempt, Classifier, Tracker, per_image
from threat_specification.attacks.losses import LOSSES
from threat_specification.norms import BoundLinf

ENLARGED = 4.0  # times the radius: where the post-hoc attack looks before it scales


def pgd(
    model: Classifier,
    labels: Tensor,
    allowed: AttackSet,
    start: Tensor,
    steps: int,
    step_size: Tensor,
    standing: Tensor,
    loss: str = "ce",
) -> Attempt:
    """`steps` steps of `step_size` [B,1,1,1] by the pixel from `start`, a point of the set."""
    tracker = Tracker(model, labels, allowed.bound.examples, standing)
    delta = start
    for _ in range(steps):
        _, gradient = tracker.ask_gradient(delta, LOSSES[loss])
        active = per_image(tracker.active)
        if not bool(active.any()):
            return tracker.attempt
        delta = allowed.project(torch.where(active, delta + step_size * allowed.ascend(gradient), delta))
    tracker.ask(delta, LOSSES[loss])
    return tracker.attempt


def post_hoc(
    model: Classifier, labels: Tensor, allowed: AttackSet, start: Tensor, steps: int, standing: Tensor
) -> Attempt:
    """The baseline of research code, for comparison only: an l-inf attack in a ball four times as large, its result
    scaled into the set afterwards. It does not look inside the set, and overstates robustness."""
    examples = allowed.bound.examples
    ball = AttackSet.within(BoundLinf(examples), 1.0, ENLARGED * float(allowed.reach.max()))
    outside = pgd(model, labels, ball, start, steps, 2.5 * ball.reach / steps, standing)
    tracker = Tracker(model, labels, examples, standing)
    tracker.ask(allowed.bound.scale(outside.delta, allowed.threshold, allowed.lower, allowed.upper))
    found = tracker.attempt
    return Attempt(
        found.broken, found.delta, found.loss, found.forwards + outside.forwards, found.backwards + outside.backwards
    )
