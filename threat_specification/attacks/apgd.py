"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690, algorithm 1) inside a convex set."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from threat_specification.attacks.base import AttackResult, AttackSet, Task, per_image
from threat_specification.attacks.losses import LOSSES
from threat_specification.attacks.starts import begin

MOMENTUM = 0.75  # alpha
MOST_TARGETS = 9
RISES = 0.75  # rho: the step size is kept only if at least this share of steps raised the loss
# First step size in units of the set's size. In l2 most pixels move by less than the root mean square, and oblique
# faces of the set undo much of a step: with shorter steps the attack stalls early and succeeds on fewer examples.
FIRST_STEP = {"sign": 2.0, "l2": 6.0}


def checkpoints(steps: int) -> set[int]:
    """Steps after which the step size may change: p_1 = 0.22, then each interval is 0.03 shorter, but at least 0.06."""
    places, previous, place = set(), 0.0, 0.22
    while place < 1:
        places.add(math.ceil(place * steps - 1e-9))
        previous, place = place, place + max(place - previous - 0.03, 0.06)
    return places


def apgd(task: Task, draw: int, loss: str = "ce", start: str = "noise") -> AttackResult:
    """Run Auto-PGD from one start, a key of STARTS, with the random numbers of a draw."""
    return ascend_from(begin(task, start, draw), task, loss)


def apgd_over_targets(task: Task, draw: int, start: str = "noise") -> AttackResult:
    """Run Auto-PGD with targeted DLR towards the most likely other classes of the clean images.

    The targets are taken one after the other, each from its own start.
    """
    result = replace(AttackResult.none(task.allowed.origin), forwards=task.robust.long())
    for rank, targets in enumerate(task.likeliest_others(MOST_TARGETS).unbind(1)):
        left = task.after(result)
        if not bool(left.robust.any()):
            break
        result = result.then(ascend_from(begin(left, start, draw + rank), left, "dlr_targeted", targets))
    return result


def ascend_from(
    start: Tensor, task: Task, loss: str, targets: Tensor | None = None, size: Tensor | None = None
) -> AttackResult:
    """Take `task.steps` projected steps with momentum from `start`, a point of the set.

    The step size starts at FIRST_STEP times `size`. At a checkpoint it is halved, and the example returns to its best
    point, if the steps since the last checkpoint improved too little (conditions 1 and 2 of the paper).

    size      [B,1,1,1] size of the set per pixel (default: the largest change of a pixel that the bounds allow)
    """
    allowed, steps, memory = task.allowed, task.steps, task.best_so_far()
    step = FIRST_STEP[allowed.steepest] * (allowed.reach if size is None else size)
    delta = before = best = start
    value, gradient = memory.ask_gradient(delta, LOSSES[loss], targets)
    best_value, best_gradient = value, gradient
    rises = torch.zeros_like(task.labels)
    schedule, last = checkpoints(steps), 0
    halved, best_at_last = torch.zeros_like(task.robust), value
    for k in range(1, steps + 1):
        active = memory.active
        if not bool(active.any()):
            break
        before, delta = delta, _move(allowed, delta, before, step * allowed.ascend(gradient), active, k == 1)
        reached, gradient = memory.ask_gradient(delta, LOSSES[loss], targets)
        rises += reached > value
        value = reached
        improved = value > best_value
        best = torch.where(per_image(improved), delta, best)
        best_gradient = torch.where(per_image(improved), gradient, best_gradient)
        best_value = torch.maximum(best_value, value)
        if k in schedule:
            stuck = (rises < RISES * (k - last)) | (~halved & (best_value <= best_at_last))
            step = torch.where(per_image(stuck), step / 2, step)
            delta = torch.where(per_image(stuck & active), best, delta)
            gradient = torch.where(per_image(stuck), best_gradient, gradient)
            value = torch.where(stuck, best_value, value)
            halved, best_at_last, last = stuck, best_value, k
            rises = torch.zeros_like(rises)
    return memory.result


def _move(allowed: AttackSet, delta: Tensor, before: Tensor, change: Tensor, active: Tensor, is_first: bool) -> Tensor:
    """The next point: a projected step, then momentum, projected again. Only `active` examples move."""
    moved = allowed.project(torch.where(per_image(active), delta + change, delta))
    if is_first:
        return moved
    mixed = delta + MOMENTUM * (moved - delta) + (1 - MOMENTUM) * (delta - before)
    return allowed.project(torch.where(per_image(active), mixed, delta))
