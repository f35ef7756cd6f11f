"""A check that a model's gradients can be followed: they are held against what the loss does.

At a few points of the set the margin's gradient g predicts how the margin changes on a short random move e: by <g, e>.
The model is asked there. Over many moves the correlation of the true changes with the predicted ones is about 1 for a
gradient that can be followed, -1 for one of the wrong sign, 0 for one that belongs to something else. Where it is that
of the shortest moves alone, longer ones change much less than it says.
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
MOVES = 8  # from each point
SHORT, LONG = 3e-5, 1e-2  # what every pixel moves by, up or down; an 8-bit level is 4e-3
FOLLOWS = 0.5  # a correlation from here on up means that the gradient can be followed
LASTS = 0.25  # of what short moves change by the gradient, what long ones must
RESOLUTION = 1e-6  # of float32 logits, relative: smaller changes cannot be told from rounding
DISTINCT = 0.5  # of all logits: with fewer distinct values the answers are rounded
DRAWS = len(POINTS) * (MOVES + 1)  # of random numbers that a look takes


class Kind(IntEnum):
    """Faults that the gradient at an example can have."""

    FINE = 0
    VANISHING = 1
    WRONG_SIGN = 2
    NOT_OF_THE_LOSS = 3
    SHATTERED = 4
    QUANTISED = 5
    RANDOM = 6


# Where following the gradient leads nowhere. Random answers are no such case: their mean has a gradient.
USELESS = (Kind.VANISHING, Kind.WRONG_SIGN, Kind.NOT_OF_THE_LOSS, Kind.SHATTERED, Kind.QUANTISED)


@dataclass
class _Products:
    """Sums over moves, [B] each, of predicted and true changes of the margin: squares, products, and how many changed
    nothing although the gradient says otherwise, or says nothing."""

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
        """Of the true changes over the predicted ones."""
        return self.both / self.predicted.clamp_min(torch.finfo(torch.float64).tiny)


def kinds(task: Task, draw: int) -> Tensor:
    """A `Kind` for each example, [B]; FINE for those that are not robust. 36 passes.

    draw   of the first random numbers; it takes DRAWS
    """
    short, long = _Products.none(task.examples), _Products.none(task.examples)
    rounding, difference = (torch.zeros(len(task.labels), device=task.labels.device) for _ in range(2))
    logits = []
    for number, start in enumerate(POINTS):
        place = draw + number * (MOVES + 1)
        point = (task.examples + begin(task, start, place)).clamp(0, 1)
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
    found[difference > torch.maximum(FOLLOWS * predicted, 10 * rounding)] = Kind.RANDOM
    return torch.where(task.robust, found, Kind.FINE)


def is_useless(found: Tensor) -> Tensor:
    """[B]: where gradients lead nowhere."""
    return torch.isin(found, torch.tensor(USELESS, device=found.device))


def _ask(task: Task, point: Tensor) -> tuple[Tensor, Tensor]:
    """The logits [B,K] at images, and the margin's gradient [B,C,H,W]."""
    inputs = point.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = task.model(inputs)
        gradient = input_gradient(LOSSES["margin"](logits, task.labels, None).sum(), inputs)
    return logits.detach(), gradient


def _margin(task: Task, images: Tensor) -> Tensor:
    with torch.no_grad():
        return LOSSES["margin"](task.model(images), task.labels, None)


def _is_rounded(logits: Tensor) -> bool:
    """True when few of the logits differ from each other. A value that is common for another reason (0 after a ReLU)
    counts once."""
    values, counts = logits.flatten().unique(return_counts=True)
    others = logits.numel() - int(counts.max())
    return len(values) - 1 < DISTINCT * others
