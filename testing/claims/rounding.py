"""Adversarial points on the grid of the images: changes in whole steps of 1/255 that stay in the set and stay wrong.

Each point is tried in several roundings, from the nearest to the most careful, and is then led uphill, until the model
is surely wrong on one that is in the set. Points that none of this keeps are lost.
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
CLIMBS, CLIMB, CLIMB_WITHIN = 10, 2.0, 0.99  # repairs by the gradient: their number, length and part of the threshold
NEARLY_WHOLE = 1e-4  # of a step: a bound that float32 puts so little below a whole step is that step
FOR_OTHERS = 2e-6  # share of a threshold left to devices that round differently: several times their difference


def well_inside(cell: Cell) -> Cell:
    """The cell, a little smaller: points in it are in the cell on other devices too."""
    return Cell(cell.threshold * (1 - FOR_OTHERS), cell.radius)


def onto_grid(batch: Batch, perturbed: Tensor, form: str, cell: Cell) -> tuple[Tensor, Tensor]:
    """Changes int16 [q,C,H,W] in the cell that the model misclassifies, and [q] bool: the points not lost.

    perturbed   [q,C,H,W] in [0, 1], wrong and in the cell up to rounding
    """
    kept = torch.zeros_like(batch.bytes, dtype=torch.int16)
    margin = torch.full((len(kept),), -torch.inf, dtype=torch.float64, device=kept.device)
    done = torch.zeros(len(kept), dtype=torch.bool, device=kept.device)
    for delta in _roundings(batch, perturbed, form, cell):
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


def _roundings(batch: Batch, perturbed: Tensor, form: str, cell: Cell) -> Iterator[Tensor]:
    """Changes in whole steps within the bounds of every pixel, and then, from there, a few steps uphill in the set."""
    images, bound = batch.images, batch.bound(form)
    lower, upper = bound.bounds((-images).clamp_min(-cell.radius), (1 - images).clamp_max(cell.radius))
    least, most = (lower * STEPS - NEARLY_WHOLE).ceil(), (upper * STEPS + NEARLY_WHOLE).floor()

    def whole(steps: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(steps, least), most).short()

    def inner(change: Tensor, part: float) -> Tensor:
        return bound.project(change, part * cell.threshold, least / STEPS, most / STEPS)

    change = perturbed - images
    gradient = _gradient(batch, perturbed)
    for part in SHRUNK:
        steps = inner(change, part) * STEPS if part < 1 else change * STEPS
        yield whole(steps.round())
        yield whole(torch.where(gradient > 0, steps.ceil(), steps.floor()))
    yield whole((change * STEPS).trunc())
    for _ in range(CLIMBS):
        change = inner(change + CLIMB / STEPS * gradient.sign(), CLIMB_WITHIN)
        gradient = _gradient(batch, images + change)
        yield whole((change * STEPS).round())


def _gradient(batch: Batch, perturbed: Tensor) -> Tensor:
    """The gradient of the margin, whose sign tells which of two whole steps fools the model more."""
    inputs = perturbed.clamp(0, 1).detach().requires_grad_(True)
    with torch.enable_grad():
        loss = LOSSES["margin"](batch.model(inputs), batch.labels, None).sum()
        return input_gradient(loss, inputs)
