"""Projected gradient descent (PGD, Madry et al. 2018) inside a set.

The ensemble, training and the post-hoc baseline all use `descend`. It projects after every step, so that the model
only sees points of the set.
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

ENLARGED = 4.0  # radius of the post-hoc attack's l-inf ball before scaling, in units of `AttackSet.reach`
MOMENTUM = 0.9
FIRST_STEP = 2.0  # first step size per pixel of PGD with momentum, in units of `AttackSet.reach`


def constant(step: int, steps: int) -> float:
    """Step size factor that is 1 at every step."""
    return 1.0


def falling(step: int, steps: int) -> float:
    """Step size factor that falls linearly over the steps, which count from 0; its mean is 1."""
    return 2 * (steps - step) / (steps + 1)


def cosine(step: int, steps: int) -> float:
    """Step size factor that falls from 1 along half a cosine; it would be 0 at the step after the last one."""
    return (1 + math.cos(math.pi * step / steps)) / 2


# delta [B,C,H,W] -> gradient [B,C,H,W], and a mask [B] of the examples that continue (None: all of them).
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
    """Take `steps` projected steps that raise a loss, from `start`, a point of the set; returns the last point.

    size       step size per pixel, a number or [B,1,1,1]
    momentum   a step goes along the sum of all directions so far; each step multiplies the earlier ones by this factor
               (Dong et al. 2018, arXiv 1710.06081). Where oblique faces of the set undo a step, single gradients
               oscillate; their sum does not.
    schedule   (step, steps) -> factor of the step size
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
    """The gradient of a loss, for the examples still under attack."""

    def gradient_at(delta: Tensor) -> tuple[Tensor, Tensor]:
        return memory.ask_gradient(delta, LOSSES[loss], targets)[1], memory.active

    return gradient_at


def pgd(task: Task, draw: int) -> AttackResult:
    """Run PGD from scaled noise with two step sizes, since the better one is not known in advance."""
    result = AttackResult.none(task.allowed.origin)
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
    """Run PGD with momentum and decreasing step sizes, once from each of several starts.

    draw    number of the first start's random field; each later start uses the next number
    share   steps of each run, as a multiple of the task's steps
    """
    result = AttackResult.none(task.allowed.origin)
    for number, start in enumerate(starts):
        result = result.then(_run(task.after(result), start, draw + number, share, loss))
    return result


def targeted_pgd(
    task: Task, draw: int, starts: Mapping[str, int], share: float = 0.5, direction: str = ""
) -> AttackResult:
    """Run PGD with momentum towards each of the most likely other classes.

    starts      name of a start -> number of target classes
    direction   a key of DIRECTIONS ("": the default of the threat). If the radius is the active constraint, sign steps
                reach the same points in fewer steps.
    """
    task = replace(task, allowed=replace(task.allowed, direction=direction))
    result = replace(AttackResult.none(task.allowed.origin), forwards=task.robust.long())
    for start, count in starts.items():
        for towards in task.likeliest_others(count).unbind(1):
            result = result.then(_run(task.after(result), start, draw, share, "margin_targeted", towards))
            draw += 1
    return result


def _run(task: Task, start: str, draw: int, share: float, loss: str, targets: Tensor | None = None) -> AttackResult:
    """Make one run of PGD with momentum; it costs nothing if no example is left to attack."""
    if not bool(task.robust.any()):
        return AttackResult.none(task.allowed.origin)
    allowed, memory = task.allowed, task.best_so_far()
    origin, steps, size = begin(task, start, draw), max(1, round(share * task.steps)), FIRST_STEP * allowed.reach
    last = descend(_asking(memory, loss, targets), allowed, origin, steps, size, MOMENTUM, cosine)
    memory.ask(last, LOSSES[loss], targets)
    return memory.result


def post_hoc(task: Task, draw: int) -> AttackResult:
    """Post-hoc scaling, a baseline from research code, for comparison only.

    All steps of an l-inf attack are taken in a ball that is ENLARGED times as large; then the last point is scaled into
    the set. The steps do not search the set itself, so this attack overstates robustness.
    """
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
