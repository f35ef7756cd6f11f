"""Images that training adds: perturbed inside a set, and moved along directions that should not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foundations.modes import evaluation_mode
from threat_specification.attacks.base import AttackSet
from threat_specification.attacks.random_numbers import uniform
from threat_specification.base import Threat, difference
from training.objectives import Batch, Moment, Part

STEP = 2.5  # times the size of the set, divided by the number of steps (Madry et al. 2018)


@dataclass(frozen=True)
class PGD:
    """PGD on the cross-entropy inside {threat <= threshold} and a radius, projected in every step.

    The model is in evaluation mode meanwhile: an attack neither uses nor moves the statistics of its batch. Every image
    takes all steps: training wants the largest loss, not the first mistake.

    size   of the set by the pixel
    """

    threat: Threat
    threshold: float
    radius: float
    size: float
    steps: int
    seed: int

    def __call__(self, model: nn.Module, batch: Batch, moment: Moment) -> Part:
        context = {"indices": batch.index} if self.threat.segmented else {}
        bound = self.threat.bind(batch.images, batch.labels, **context)
        allowed = AttackSet.within(bound, self.threshold, self.radius)
        delta = allowed.random_start(self.seed, batch.index, moment.iteration)
        with evaluation_mode(model):
            for _ in range(self.steps):
                gradient = _input_gradient(model, batch.images + delta, batch.labels)
                delta = allowed.project(delta + STEP * self.size / self.steps * allowed.ascend(gradient))
        return Part((batch.images + delta).clamp(0, 1), batch.labels)


def _input_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of the cross-entropy, in the images alone: the weights get none."""
    inputs = images.clamp(0, 1).detach().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(inputs), labels, reduction="sum")
    return torch.autograd.grad(loss, inputs)[0]


@dataclass(frozen=True)
class NonisotropicAugmentation:
    """On a random share of the batches: another image of the batch, and Gaussian noise, each projected (as the threat
    is set to) into {PD <= threshold} and the pixel box around the image, whose label they keep."""

    threat: Threat
    threshold: float
    frequency: int
    mean: float
    std: float
    seed: int

    def __call__(self, batch: Batch, moment: Moment) -> Sequence[Part]:
        chance = torch.rand(1, generator=torch.Generator().manual_seed((self.seed + moment.iteration) % 2**63))
        if float(chance) * self.frequency >= 1:
            return ()
        context = {"indices": batch.index} if self.threat.segmented else {}
        bound = self.threat.bind(batch.images, batch.labels, **context)
        noise = self.mean + self.std * _normal(self.seed, batch.index, moment.iteration, tuple(batch.images.shape[1:]))
        changes = (difference(batch.partner_images, batch.images), noise)
        return [
            Part((batch.images + bound.project(change, self.threshold)).clamp(0, 1), batch.labels) for change in changes
        ]


def _normal(seed: int, index: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers that depend on (seed, index, draw) alone, by the inverse of their distribution."""
    # Away from 0 and 1, where the inverse is infinite.
    return torch.special.ndtri(uniform(seed, index, draw, shape).clamp(2**-25, 1 - 2**-24))
