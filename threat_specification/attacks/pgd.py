"""Projected gradient descent inside a set (Madry et al. 2018), and the post-hoc baseline that it is compared with.

Projected in every step: what the model sees is inside the set throughout.
"""

from __future__ import annotations

from collections.abc import Callable
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

ENLARGED = 4.0  # times the radius: where the post-hoc attack looks before it scales


def constant(step: int, steps: int) -> float:
    """Factor of the length of a step: all alike."""
    return 1.0


def falling(step: int, steps: int) -> float:
    """Falls linearly over the steps, counted from 0; 1 on average."""
    return 2 * (steps - step) / (steps + 1)


def pgd(
    model: Classifier,
    labels: Tensor,
    allowed: AttackSet,
    start: Tensor,
    steps: int,
    step_size: Tensor,
    standing: Tensor,
    loss: str = "ce",
    momentum: float = 0.0,
    schedule: Callable[[int, int], float] = constant,
) -> Attempt:
    """`steps` steps of `step_size` [B,1,1,1] by the pixel from `start`, a point of the set.

    momentum   steps go along the sum of all directions so far, each times this factor once more at every step (Dong et
               al. 2018, arXiv 1710.06081). Where oblique faces of the set throw a step back, single gradients go to
               and fro; their sum does not.
    schedule   (step, steps) -> factor of its size
    """
    tracker = Tracker(model, labels, allowed.bound.examples, standing)
    delta, total = start, torch.zeros_like(start)
    for step in range(steps):
        _, gradient = tracker.ask_gradient(delta, LOSSES[loss])
        active = per_image(tracker.active)
        if not bool(active.any()):
            return tracker.attempt
        direction = allowed.ascend(gradient)
        if momentum:
            total = momentum * total + direction
            direction = allowed.ascend(total)
        moved = delta + schedule(step, steps) * step_size * direction
        delta = allowed.project(torch.where(active, moved, delta))
    tracker.ask(delta, LOSSES[loss])
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
