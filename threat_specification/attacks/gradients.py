"""Diagnosis of gradient masking: a comparison of gradients with actual changes of the margin.

At a few points of the set, the margin's gradient g predicts the change <g, e> of the margin for a short random move e.
The model gives the true change. Over many moves, the correlation of true and predicted changes is about 1 for a useful
gradient, -1 for a gradient of the wrong sign, and 0 for a gradient of another function than the loss. A shattered
gradient is right for very short moves only: longer moves change the margin much less than it predicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from threat_specification.attacks.base import Task, input_gradient
from threat_specification.attacks.losses import LOSSES
from threat_specification.attacks.random_numbers import uniform
from threat_specification.attacks.starts import begin

POINTS = ("corner", "scaled_noise")
MOVES = 8  # moves from each point
SHORT, LONG = 3e-5, 1e-2  # change of every pixel in a move, up or down; an 8-bit level is 4e-3
FOLLOWS = 0.5  # smallest correlation of a useful gradient
LASTS = 0.25  # smallest ratio of the long moves' `slope` to that of the short moves for a useful gradient
RESOLUTION = 1e-6  # relative resolution of float32 logits: smaller changes may be rounding
DISTINCT = 0.5  # smallest share of distinct values among logits that are not quantised
DRAWS = len(POINTS) * (MOVES + 1)  # numbers of random fields that one diagnosis uses


class Kind(IntEnum):
    """Kind of the gradient at an example: FINE, or a fault."""

    FINE = 0
    VANISHING = 1
    WRONG_SIGN = 2
    NOT_OF_THE_LOSS = 3
    SHATTERED = 4
    QUANTISED = 5
    RANDOM = 6


# Kinds for which gradient steps are useless. RANDOM is not one of them: the mean of random answers has a gradient. It
# has none where the gradient vanishes, which is VANISHING, random or not.
USELESS = (Kind.VANISHING, Kind.WRONG_SIGN, Kind.NOT_OF_THE_LOSS, Kind.SHATTERED, Kind.QUANTISED)


@dataclass
class _Products:
    """Sums over moves, [B] each, for predicted and true changes of the margin.

    predicted, true, both   sums of the squares of each and of their products
    unchanged               number of moves that left the margin unchanged although the gradient is 0 or predicts a
                            change above rounding
    """

    predicted: Tensor
    true: Tensor
    both: Tensor
    unchanged: Tensor

    @classmethod
    def none(cls, like: Tensor) -> _Products:
        return cls(*(torch.zeros(len(like), dtype=torch.float64, device=like.device) for _ in range(4)))

    def add(self, gradient: Tensor, move: Tensor, true: Tensor, rounding: Tensor) -> None:
        predicted = (gradient * move).flatten(1).sum(1)
        self.unchanged += (true == 0) & ((predicted.abs() > rounding) | ~gradient.flatten(1).any(1))
        predicted, true = predicted.double(), true.double()
        self.predicted += predicted.square()
        self.true += true.square()
        self.both += predicted * true

    @property
    def correlation(self) -> Tensor:
        return self.both / (self.predicted * self.true).sqrt().clamp_min(torch.finfo(torch.float64).tiny)

    @property
    def slope(self) -> Tensor:
        """Least-squares slope of the true changes as a multiple of the predicted ones."""
        return self.both / self.predicted.clamp_min(torch.finfo(torch.float64).tiny)


def kinds(task: Task, draw: int) -> Tensor:
    """A `Kind` for each example, [B]; FINE for those that are not robust. Takes 36 forward and 2 backward passes.

    draw   number of the first random field; DRAWS numbers are used
    """
    short, long = _Products.none(task.examples), _Products.none(task.examples)
    rounding, difference = (torch.zeros(len(task.labels), device=task.labels.device) for _ in range(2))
    logits = []
    for number, start in enumerate(POINTS):
        place = draw + number * (MOVES + 1)
        point = task.allowed.image(begin(task, start, place))
        answers, gradient = _ask(task, point)
        margin, resolution = LOSSES["margin"](answers, task.labels, None), RESOLUTION * answers.abs().amax(1)
        for move in range(1, MOVES + 1):
            signs = uniform(task.seed, task.index, place + move, tuple(point.shape[1:])) < 0.5
            for length, products in ((SHORT, short), (LONG, long)):
                moved = torch.where(signs, point - length, point + length).clamp(0, 1)
                products.add(gradient, moved - point, _margin(task, moved) - margin, resolution)
        rounding = torch.maximum(rounding, resolution)
        difference = torch.maximum(difference, (_margin(task, point) - margin).abs())
        logits.append(answers)
    found = torch.full_like(task.labels, Kind.NOT_OF_THE_LOSS)
    found[long.correlation <= -FOLLOWS] = Kind.WRONG_SIGN
    found[long.correlation >= FOLLOWS] = Kind.FINE
    holds_shortly = short.correlation >= FOLLOWS
    found[holds_shortly & ((long.correlation < FOLLOWS) | (long.slope < LASTS * short.slope))] = Kind.SHATTERED
    moves = MOVES * len(POINTS)
    predicted = (long.predicted / moves).sqrt().float()
    vanishes = predicted <= rounding
    found[vanishes] = Kind.VANISHING
    stands_still = (2 * short.unchanged >= moves) & (long.true > 0)
    found[stands_still | (vanishes & _is_rounded(torch.cat(logits)))] = Kind.QUANTISED
    is_random = difference > torch.maximum(FOLLOWS * predicted, 10 * rounding)
    found[is_random & ~vanishes] = Kind.RANDOM
    return torch.where(task.robust, found, Kind.FINE)


def is_useless(found: Tensor) -> Tensor:
    """[B] bool: examples for which gradient steps are useless."""
    return torch.isin(found, torch.tensor(USELESS, device=found.device))


def _ask(task: Task, point: Tensor) -> tuple[Tensor, Tensor]:
    """The logits [B,K] at a point, and the margin's gradient [B,C,H,W]."""
    inputs = point.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = task.model(inputs)
        gradient = input_gradient(LOSSES["margin"](logits, task.labels, None).sum(), inputs)
    return logits.detach(), gradient


def _margin(task: Task, images: Tensor) -> Tensor:
    with torch.no_grad():
        return LOSSES["margin"](task.model(images), task.labels, None)


def _is_rounded(logits: Tensor) -> bool:
    """Return True if too few of the logits are distinct.

    The most common value is left out: it may be common for another reason (0 after a ReLU).
    """
    values, counts = logits.flatten().unique(return_counts=True)
    others = logits.numel() - int(counts.max())
    return len(values) - 1 < DISTINCT * others
