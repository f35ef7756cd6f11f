"""Learning rates as functions of the optimizer step: a warm-up, then an entry of `SHAPES`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A learning rate schedule: `factor(i)` in [0, 1] times the peak rate is used at optimizer step i, from 0."""

    total: int
    warmup: int
    milestones: tuple[int, ...]
    gamma: float
    shape: str

    def factor(self, iteration: int) -> float:
        if iteration < self.warmup:
            return (iteration + 1) / self.warmup
        return SHAPES[self.shape](self, iteration)


def cosine(schedule: Schedule, iteration: int) -> float:
    """Half a cosine from 1 after the warm-up to 0 at the end."""
    length = max(1, schedule.total - schedule.warmup)
    return (1 + math.cos(math.pi * (iteration - schedule.warmup) / length)) / 2


def milestones(schedule: Schedule, iteration: int) -> float:
    """gamma to the power of the number of milestones passed."""
    return schedule.gamma ** sum(iteration >= milestone for milestone in schedule.milestones)


RISE = 0.3  # share of one cycle in which the learning rate rises
LOW, LOWEST = 1 / 25, 1 / 25e4  # factors at the beginning and at the end of the cycle


def onecycle(schedule: Schedule, iteration: int) -> float:
    """Half a cosine up, then half a cosine down (Smith and Topin 2018, arXiv 1708.07120; phases as in PyTorch)."""
    position, last = iteration - schedule.warmup, schedule.total - schedule.warmup - 1
    peak = max(RISE * (last + 1) - 1, 0.0)
    if position <= peak:
        return _half_cosine(LOW, 1.0, position / peak if peak else 1.0)
    return _half_cosine(1.0, LOWEST, (position - peak) / (last - peak))


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


def constant(schedule: Schedule, iteration: int) -> float:
    """The constant 1."""
    return 1.0


SHAPES: dict[str, Callable[[Schedule, int], float]] = {
    "cosine": cosine,
    "milestones": milestones,
    "onecycle": onecycle,
    "constant": constant,
}
