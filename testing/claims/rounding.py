"""Adversarial points on the grid of the images: changes in whole steps of 1/255 that stay in the set and stay wrong.

Each point is tried in several roundings, from the nearest to the most careful, and is then led uphill, until the model
is surely wrong on one that is in the set. Points that none of this keeps are lost; most of them because a radius is no
whole number of steps: of 0.3, which is 76.5, only 76 are left.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from testing.claims.judging import Batch
from threat_specification.attacks.base import input_gradient, per_image
from threat_specification.attacks.losses import LOSSES
from threat_specification.attacks.search import Cell

STEPS = 255  # of a pixel
SHRUNK = (1.0, 0.998, 0.99, 0.97, 0.93, 0.85)  # parts of the threshold that points are projected to before rounding
CLIMBS = 40  # steps of ascent
CLIMB = 0.05  # length of the first of them, in widths of the box
CLIMB_WITHIN = 0.995  # part of the threshold in which they stay
NEARLY_WHOLE = 1e-4  # of a step: a bound that float32 puts so little below a whole step is that step
FOR_OTHERS = 2e-6  # share of a threshold left to devices that round differently: several times their difference


def well_inside(cell: Cell) -> Cell:
    """The cell, a little smaller: points in it are in the cell on other devices too."""
    return Cell(cell.threshold * (1 - FOR_OTHERS), cell.radius)


def onto_grid(batch: Batch, perturbed: Tensor, form: str, cell: Cell) -> tuple[Tensor, Tensor]:
    """Changes int16 [q,C,H,W] in the cell that the model misclassifies, and [q] bool: the points not lost.

    perturbed   [q,C,H,W] in [0, 1], wrong and in the cell up to rounding
    """
    return _first_that_hold(batch, _Grid(batch, form, cell).roundings(perturbed), form, cell)


def led_uphill(batch: Batch, perturbed: Tensor, form: str, cell: Cell) -> tuple[Tensor, Tensor]:
    """The same for points that no rounding keeps: the rounded points of some steps of gradient ascent in the set."""
    return _first_that_hold(batch, _Grid(batch, form, cell).ascent(perturbed), form, cell)


def _first_that_hold(batch: Batch, candidates: Iterator[Tensor], form: str, cell: Cell) -> tuple[Tensor, Tensor]:
    """For each point the first candidate that is in the cell and surely wrong, else the one that is most wrong."""
    kept = torch.zeros_like(batch.bytes, dtype=torch.int16)
    margin = torch.full((len(kept),), -torch.inf, dtype=torch.float64, device=kept.device)
    done = torch.zeros(len(kept), dtype=torch.bool, device=kept.device)
    for delta in candidates:
        threat, length, lawful = batch.measure(form, delta)
        margins = batch.margins(delta)
        inside = lawful & well_inside(cell).holds(threat, length)
        better = ~done & inside & (margins.value > 0) & (margins.value > margin)
        kept = torch.where(per_image(better), delta, kept)
        margin = torch.where(better, margins.value, margin)
        done |= better & margins.sure
        if bool(done.all()):
            break
    return kept, margin > 0


class _Grid:
    """The changes in whole steps within the bounds of every pixel."""

    def __init__(self, batch: Batch, form: str, cell: Cell) -> None:
        self.batch, self.bound, self.threshold = batch, batch.bound(form), cell.threshold
        images = batch.images
        lower, upper = self.bound.bounds((-images).clamp_min(-cell.radius), (1 - images).clamp_max(cell.radius))
        self.least, self.most = (lower * STEPS - NEARLY_WHOLE).ceil(), (upper * STEPS + NEARLY_WHOLE).floor()

    def whole(self, steps: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(steps, self.least), self.most).short()

    def inner(self, change: Tensor, part: float) -> Tensor:
        """The nearest change with at most this part of the threshold, which need not be whole."""
        return self.bound.project(change, part * self.threshold, self.least / STEPS, self.most / STEPS)

    def both(self, change: Tensor, uphill: Tensor) -> Iterator[Tensor]:
        """The nearest whole steps, and of the two around each pixel's change the one uphill."""
        steps = change * STEPS
        yield self.whole(steps.round())
        yield self.whole(torch.where(uphill, steps.ceil(), steps.floor()))

    def roundings(self, perturbed: Tensor) -> Iterator[Tensor]:
        """From the nearest to those that leave room to the border of the set, and towards the image."""
        change, uphill = perturbed - self.batch.images, _gradient(self.batch, perturbed) > 0
        for part in SHRUNK:
            yield from self.both(self.inner(change, part) if part < 1 else change, uphill)
        yield self.whole((change * STEPS).trunc())

    def ascent(self, perturbed: Tensor) -> Iterator[Tensor]:
        """Steps that become shorter, each one rounded in both ways."""
        change, images = perturbed - self.batch.images, self.batch.images
        for number in range(CLIMBS):
            gradient = _gradient(self.batch, images + change)
            length = per_image((self.most - self.least).flatten(1).amax(1)) / STEPS * CLIMB * (1 - number / CLIMBS)
            change = self.inner(change + length * gradient.sign(), CLIMB_WITHIN)
            yield from self.both(change, gradient > 0)


def _gradient(batch: Batch, perturbed: Tensor) -> Tensor:
    """The gradient of the margin, whose sign tells which of two whole steps fools the model more."""
    inputs = perturbed.clamp(0, 1).detach().requires_grad_(True)
    with torch.enable_grad():
        loss = LOSSES["margin"](batch.model(inputs), batch.labels, None).sum()
        return input_gradient(loss, inputs)
