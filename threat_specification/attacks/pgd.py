"""Projected gradient descent inside a set (Madry et al. 2018), and the post-hoc baseline that it is compared with.

Projected in every step: what the model sees is inside the set throughout.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from threat_specification.attacks.base import (
    AttackSet,
    Attempt,
    Classifier,
    Tracker,
    input_gradient,
    per_image,
)
from threat_specification.attacks.losses import LOSSES

MOMENTUM, REACH = 0.9, 20.0
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


def falling(step: int, steps: int) -> float:
    """Factor of the length of a step that falls linearly: 1 on average over the steps, counted from 0."""
    return 2 * (steps - step) / (steps + 1)


def momentum_pgd(
    model: Classifier,
    labels: Tensor,
    allowed: AttackSet,
    start: Tensor,
    steps: int,
    standing: Tensor,
    momentum: float = MOMENTUM,
    reach: float = REACH,
) -> Attempt:
    """Steps along a sum of all directions so far (Dong et al. 2018, arXiv 1710.06081), their length falling linearly.

    Where oblique faces of the set throw a step back, single gradients go to and fro; their sum does not.

    momentum   factor of the sum at each step
    reach      of all steps together, times the distance that a pixel may move
    """
    tracker = Tracker(model, labels, allowed.bound.examples, standing)
    delta, direction = start, torch.zeros_like(start)
    for step in range(steps):
        _, gradient = tracker.ask_gradient(delta, LOSSES["ce"])
        active = per_image(tracker.active)
        if not bool(active.any()):
            return tracker.attempt
        direction = momentum * direction + allowed.ascend(gradient)
        length = reach / steps * falling(step, steps) * allowed.reach
        delta = allowed.project(torch.where(active, delta + length * allowed.ascend(direction), delta))
    tracker.ask(delta, LOSSES["ce"])
    return tracker.attempt


def post_hoc(
    model: Classifier, labels: Tensor, allowed: AttackSet, start: Tensor, steps: int, standing: Tensor
) -> Attempt:
    """The baseline of research code, for comparison only: all steps of an l-inf attack in a ball ENLARGED times as
    large, its last point scaled into the set. It does not look inside the set, and overstates robustness."""
    examples, radius = allowed.bound.examples, ENLARGED * allowed.reach
    lower, upper = torch.maximum(-examples, -radius), torch.minimum(1 - examples, radius)
    delta = start
    for _ in range(steps):
        inputs = (examples + delta).detach().requires_grad_(True)
        with torch.enable_grad():
            loss = LOSSES["ce"](model(inputs), labels, None).sum()
            gradient = input_gradient(loss, inputs)
        delta = torch.minimum(torch.maximum(delta + 2.5 * radius / steps * gradient.sign(), lower), upper)
    tracker = Tracker(model, labels, examples, standing)
    tracker.ask(allowed.bound.scale(delta, allowed.threshold, allowed.lower, allowed.upper))
    found = tracker.attempt
    return replace(found, forwards=found.forwards + steps * standing, backwards=steps * standing.long())
