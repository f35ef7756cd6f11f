"""Learning rates as functions of the optimizer step: a warm-up, then an entry of `SHAPES`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from foundations.step import Step


@dataclass(frozen=True)
class Schedule:
    """`factor(i)` in [0, 1] multiplies the peak learning rate at optimizer step i, counted from 0."""

    total: Step
    warmup: Step
    milestones: tuple[Step, ...]
    gamma: float
    shape: str

    def factor(self, iteration: int) -> float:
        if iteration < self.warmup.iteration:
            return (iteration + 1) / self.warmup.iteration
        return SHAPES[self.shape](self, iteration)


def cosine(schedule: Schedule, iteration: int) -> float:
    """Half a cosine from 1 after the warm-up to 0 at the end."""
    length = max(1, schedule.total.iteration - schedule.warmup.iteration)
    return (1 + math.cos(math.pi * (iteration - schedule.warmup.iteration) / length)) / 2


def milestones(schedule: Schedule, iteration: int) -> float:
    """gamma to the number of milestones passed."""
    return schedule.gamma ** sum(iteration >= milestone.iteration for milestone in schedule.milestones)


def constant(schedule: Schedule, iteration: int) -> float:
    """1 throughout."""
    return 1.0


SHAPES: dict[str, Callable[[Schedule, int], float]] = {
    "cosine": cosine,
    "milestones": milestones,
    "constant": constant,
}
