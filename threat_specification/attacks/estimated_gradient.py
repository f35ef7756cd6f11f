"""PGD with gradients estimated from the model's answers alone, for models whose own gradients are useless.

Take the difference of the margin between two opposite random moves, times the move. Its mean is, up to a factor, the
gradient of the margin smoothed over such moves (Nesterov and Spokoiny 2017; Ilyas et al. 2018, arXiv 1804.08598).
Momentum adds up the rough estimates of the steps. Smoothing removes rounding and oscillations shorter than a move.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from threat_specification.attacks.base import AttackResult, Task, per_image
from threat_specification.attacks.gradients import DRAWS, is_useless, kinds
from threat_specification.attacks.losses import LOSSES
from threat_specification.attacks.pgd import FIRST_STEP, MOMENTUM, cosine, descend
from threat_specification.attacks.random_numbers import uniform
from threat_specification.attacks.starts import begin

PAIRS = 128  # pairs of opposite moves per step
MOVE = 1 / 3  # change of each pixel in a move, in units of `AttackSet.pixel_reach`
SHORT = 0.1  # but at least this, as far as the set goes: shorter moves seldom cross a step between coarse levels


def estimated_gradient(task: Task, draw: int, pairs: int = PAIRS) -> AttackResult:
    """Run PGD from a projected corner, for those robust examples whose gradients are useless (`gradients.kinds`).

    Every step takes 2 `pairs` forward passes for the estimate, about 10,000 in 40 steps. Examples with useful gradients
    only take the passes of `kinds`, which are not counted.

    draw   number of the first random field; later ones use the numbers after it
    """
    useless = task.robust & is_useless(kinds(task, draw))
    left = replace(task, robust=useless)
    if not bool(useless.any()):
        return AttackResult.none(task.allowed.origin)
    memory, step, spent = left.best_so_far(), 0, torch.zeros_like(task.labels)
    memory.ask(start := begin(left, "corner", draw + DRAWS))

    def gradient_at(delta: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal step, spent
        memory.ask(delta)
        spent = spent + 2 * pairs * memory.active  # the estimate, of those that are still under attack
        first, step = draw + DRAWS + 1 + pairs * step, step + 1
        return _estimate(left, delta, range(first, first + pairs)), memory.active

    size = FIRST_STEP * task.allowed.reach
    memory.ask(descend(gradient_at, task.allowed, start, task.steps, size, MOMENTUM, cosine))
    found = memory.result
    return replace(found, forwards=found.forwards + spent)


def _estimate(task: Task, delta: Tensor, draws: range) -> Tensor:
    """The margin's smoothed gradient at delta, up to a positive factor for each example."""
    images, reach = task.allowed.image(delta), task.allowed.pixel_reach
    move = torch.maximum(MOVE * reach, reach.clamp_max(SHORT))
    total = torch.zeros_like(images)
    for draw in draws:
        signs = torch.where(uniform(task.seed, task.index, draw, tuple(images.shape[1:])) < 0.5, -1.0, 1.0)
        with torch.no_grad():
            ahead, behind = (task.model((images + way * move * signs).clamp(0, 1)) for way in (1, -1))
        rise = LOSSES["margin"](ahead, task.labels, None) - LOSSES["margin"](behind, task.labels, None)
        total += per_image(rise) * signs
    return task.allowed.pull_back(total, delta)
