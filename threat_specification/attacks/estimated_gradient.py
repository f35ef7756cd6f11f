"""Descent along gradients that are estimated from answers alone, for models whose own lead nowhere.

The difference of the margin between opposite random moves, times the move, has the gradient of the margin, smoothed
over such moves, as its mean (Nesterov and Spokoiny 2017; Ilyas et al. 2018, arXiv 1804.08598). Momentum adds up what
the steps estimate, each roughly. Rounding and oscillations that are shorter than a move are smoothed away.
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

PAIRS = 128  # of opposite moves for each step
MOVE = 1 / 3  # of how far a pixel may move


def estimated_gradient(task: Task, draw: int, pairs: int = PAIRS) -> AttackResult:
    """From a projected corner, for those robust examples whose gradients lead nowhere (`gradients.kinds`).

    It asks the model 2 `pairs` times in every step, 10,000 times in 40; nothing where gradients can be followed.

    draw   of the first random numbers; later ones come after it
    """
    useless = task.robust & is_useless(kinds(task, draw))
    left = replace(task, robust=useless)
    if not bool(useless.any()):
        return AttackResult.none(task.examples)
    memory, step = left.best_so_far(), 0
    memory.ask(start := begin(left, "corner", draw + DRAWS))

    def gradient_at(delta: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal step
        memory.ask(delta)
        first, step = draw + DRAWS + 1 + pairs * step, step + 1
        return _estimate(left, delta, range(first, first + pairs)), memory.active

    size = FIRST_STEP * task.allowed.reach
    memory.ask(descend(gradient_at, task.allowed, start, task.steps, size, MOMENTUM, cosine))
    found = memory.result
    return replace(found, forwards=found.forwards + 2 * pairs * step * useless)


def _estimate(task: Task, delta: Tensor, draws: range) -> Tensor:
    """The margin's smoothed gradient at delta, up to its length, [B,C,H,W]."""
    images, move = (task.examples + delta).clamp(0, 1), MOVE * task.allowed.reach
    total = torch.zeros_like(images)
    for draw in draws:
        signs = torch.where(uniform(task.seed, task.index, draw, tuple(images.shape[1:])) < 0.5, -1.0, 1.0)
        with torch.no_grad():
            ahead, behind = (task.model((images + way * move * signs).clamp(0, 1)) for way in (1, -1))
        rise = LOSSES["margin"](ahead, task.labels, None) - LOSSES["margin"](behind, task.labels, None)
        total += per_image(rise) * signs
    return total
