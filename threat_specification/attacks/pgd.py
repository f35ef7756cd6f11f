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

from threat_specification.attacks.base import AttackResult, AttackSet, BestSoFar, Task, input_gradient, per_image
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


def _asking(memory: BestSoFar, loss: str, targets: Tensor | None = None) -> Gradient:
    """The gradient of a loss, for the examples that still stand."""

    def gradient_at(delta: Tensor) -> tuple[Tensor, Tensor]:
        return memory.ask_gradient(delta, LOSSES[loss], targets)[1], memory.active

    return gradient_at


def pgd(task: Task, draw: int) -> AttackResult:
    """From scaled noise, at two step sizes, as one cannot know which suits."""
    result = AttackResult.none(task.examples)
    for number, size in enumerate((task.allowed.reach / 4, 2 * task.allowed.reach)):
        left = task.after(result)
        memory = left.best_so_far()
        start = begin(left, "scaled_noise", draw + number)
        memory.ask(descend(_asking(memory, "ce"), task.allowed, start, task.steps, size), LOSSES["ce"])
        result = result.then(memory.result)
    return result


def momentum_pgd(
    task: Task, draw: int, loss: str = "ce", starts: Sequence[str] = ("corner",), share: float = 1.0
) -> AttackResult:
    """Descent with momentum and falling steps, once from each of several starts.

    draw    of the first start's random numbers; the others take those after it
    share   of the task's steps that each of these runs takes
    """
    result = AttackResult.none(task.examples)
    for number, start in enumerate(starts):
        result = result.then(_run(task.after(result), start, draw + number, share, loss))
    return result


def targeted_pgd(
    task: Task, draw: int, starts: Mapping[str, int], share: float = 0.5, direction: str = ""
) -> AttackResult:
    """The same towards the likeliest other classes.

    starts      where it begins -> towards how many of them
    direction   of its steps: an entry of DIRECTIONS ("": the one that suits the threat). Where the radius is what
                binds, signs get there in fewer steps.
    """
    task = replace(task, allowed=replace(task.allowed, direction=direction))
    result = replace(AttackResult.none(task.examples), forwards=task.robust.long())
    for start, count in starts.items():
        for towards in task.likeliest_others(count).unbind(1):
            result = result.then(_run(task.after(result), start, draw, share, "margin_targeted", towards))
            draw += 1
    return result


def _run(task: Task, start: str, draw: int, share: float, loss: str, targets: Tensor | None = None) -> AttackResult:
    """One descent with momentum. It costs nothing where nothing stands."""
    if not bool(task.robust.any()):
        return AttackResult.none(task.examples)
    allowed, memory = task.allowed, task.best_so_far()
    origin, steps, size = begin(task, start, draw), max(1, round(share * task.steps)), FIRST_STEP * allowed.reach
    last = descend(_asking(memory, loss, targets), allowed, origin, steps, size, MOMENTUM, cosine)
    memory.ask(last, LOSSES[loss], targets)
    return memory.result


def post_hoc(task: Task, draw: int) -> AttackResult:
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
    memory = task.best_so_far()
    memory.ask(allowed.bound.scale(outside, allowed.threshold, allowed.lower, allowed.upper))
    found = memory.result
    passes = task.steps * task.robust.long()
    return replace(found, forwards=found.forwards + passes, backwards=passes)
