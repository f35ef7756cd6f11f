"""Projected gradient descent inside a set (Madry et al. 2018): the one descent of the ensemble, of training and of the
post-hoc baseline.

Projected in every step: what the model sees is inside the set throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from threat_specification.attacks.base import AttackSet, Attempt, Task, Tracker, input_gradient, per_image
from threat_specification.attacks.losses import LOSSES
from threat_specification.attacks.starts import begin
from threat_specification.norms import BoundLinf

ENLARGED = 4.0  # times the radius: where the post-hoc attack looks before it scales
MOMENTUM = 0.9
FIRST_STEP = 2.0  # times what a pixel may move: length of the first step of the descent with momentum, by the pixel


def constant(step: int, steps: int) -> float:
    """Factor of the length of a step: all alike."""
    return 1.0


def falling(step: int, steps: int) -> float:
    """Falls linearly over the steps, counted from 0; 1 on average."""
    return 2 * (steps - step) / (steps + 1)


def cosine(step: int, steps: int) -> float:
    """Falls from 1 by half a cosine, and would reach 0 at the step after the last one."""
    return (1 + math.cos(math.pi * step / steps)) / 2


# Gradient at delta [B,C,H,W], and which examples go on, [B] (None: all of them).
Gradient = Callable[[Tensor], "tuple[Tensor, Tensor | None]"]


def descend(
    gradient_at: Gradient,
    allowed: AttackSet,
    start: Tensor,
    steps: int,
    size: Tensor | float,
    momentum: float = 0.0,
    schedule: Callable[[int, int], float] = constant,
) -> Tensor:
    """The last of `steps` projected steps that raise a loss, from `start`, a point of the set.

    size       of a step by the pixel, a number or [B,1,1,1]
    momentum   steps go along the sum of all directions so far, each times this factor once more at every step (Dong et
               al. 2018, arXiv 1710.06081). Where oblique faces of the set throw a step back, single gradients go to
               and fro; their sum does not.
    schedule   (step, steps) -> factor of its size
    """
    delta, direction = start, torch.zeros_like(start)
    for step in range(steps):
        gradient, going = gradient_at(delta)
        if going is not None and not bool(going.any()):
            break
        direction = momentum * direction + allowed.ascend(gradient)
        moved = delta + schedule(step, steps) * size * allowed.ascend(direction)
        delta = allowed.project(moved if going is None else torch.where(per_image(going), moved, delta))
    return delta


def _asking(tracker: Tracker, loss: str, targets: Tensor | None = None) -> Gradient:
    """The gradient of a loss, for the examples that still stand."""

    def gradient_at(delta: Tensor) -> tuple[Tensor, Tensor]:
        return tracker.ask_gradient(delta, LOSSES[loss], targets)[1], tracker.active

    return gradient_at


def pgd(task: Task, draw: int) -> Attempt:
    """From scaled noise, at two step sizes, as one cannot know which suits."""
    attempt = Attempt.none(task.examples)
    for number, size in enumerate((task.allowed.reach / 4, 2 * task.allowed.reach)):
        left = task.after(attempt)
        tracker = left.tracker()
        start = begin(left, "scaled_noise", draw + number)
        tracker.ask(descend(_asking(tracker, "ce"), task.allowed, start, task.steps, size), LOSSES["ce"])
        attempt = attempt.then(tracker.attempt)
    return attempt


def momentum_pgd(
    task: Task, draw: int, loss: str = "ce", starts: Sequence[str] = ("corner",), share: float = 1.0
) -> Attempt:
    """Descent with momentum and falling steps, once from each of several starts.

    draw    of the first start's random numbers; the others take those after it
    share   of the task's steps that each of these runs takes
    """
    attempt = Attempt.none(task.examples)
    for number, start in enumerate(starts):
        attempt = attempt.then(_run(task.after(attempt), start, draw + number, share, loss))
    return attempt


def targeted_pgd(task: Task, draw: int, starts: Mapping[str, int], share: float = 0.5, direction: str = "") -> Attempt:
    """The same towards the likeliest other classes.

    starts      where it begins -> towards how many of them
    direction   of its steps: an entry of DIRECTIONS ("": the one that suits the threat). Where the radius is what
                binds, signs get there in fewer steps.
    """
    task = replace(task, allowed=replace(task.allowed, direction=direction))
    attempt = replace(Attempt.none(task.examples), forwards=task.standing.long())
    for start, count in starts.items():
        for towards in task.likeliest_others(count).unbind(1):
            attempt = attempt.then(_run(task.after(attempt), start, draw, share, "margin_targeted", towards))
            draw += 1
    return attempt


def _run(task: Task, start: str, draw: int, share: float, loss: str, targets: Tensor | None = None) -> Attempt:
    """One descent with momentum. It costs nothing where nothing stands."""
    if not bool(task.standing.any()):
        return Attempt.none(task.examples)
    allowed, tracker = task.allowed, task.tracker()
    origin, steps, size = begin(task, start, draw), max(1, round(share * task.steps)), FIRST_STEP * allowed.reach
    last = descend(_asking(tracker, loss, targets), allowed, origin, steps, size, MOMENTUM, cosine)
    tracker.ask(last, LOSSES[loss], targets)
    return tracker.attempt


def post_hoc(task: Task, draw: int) -> Attempt:
    """The baseline of research code, for comparison only: all steps of an l-inf attack in a ball ENLARGED times as
    large, its last point scaled into the set. It does not look inside the set, and overstates robustness."""
    allowed, examples = task.allowed, task.examples
    radius = ENLARGED * allowed.reach
    ball = AttackSet(BoundLinf(examples), 1.0, torch.maximum(-examples, -radius), torch.minimum(1 - examples, radius))

    def gradient_at(delta: Tensor) -> tuple[Tensor, None]:
        inputs = (examples + delta).detach().requires_grad_(True)
        with torch.enable_grad():
            return input_gradient(LOSSES["ce"](task.model(inputs), task.labels, None).sum(), inputs), None

    outside = descend(gradient_at, ball, begin(task, "scaled_noise", draw), task.steps, 2.5 * radius / task.steps)
    tracker = task.tracker()
    tracker.ask(allowed.bound.scale(outside, allowed.threshold, allowed.lower, allowed.upper))
    found = tracker.attempt
    passes = task.steps * task.standing.long()
    return replace(found, forwards=found.forwards + passes, backwards=passes)
