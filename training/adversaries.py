"""Adversaries of training: images perturbed inside a set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from foundations.modes import evaluation_mode
from foundations.step import Step
from threat_specification.attacks.base import AttackSet, input_gradient
from threat_specification.attacks.pgd import constant, descend, falling
from threat_specification.attacks.starts import STARTS
from threat_specification.base import Threat
from training.batch import Batch
from training.objectives import Part
from training.starts import RandomStarts, Starts

STEP = 2.5  # times the size of the set: all steps together (Madry et al. 2018)
SINGLE_STEP = 1.25  # times the size, alone: longer ones make the network see them coming (Wong et al. 2020)
LOSS_SCALE = 1024.0  # a power of two, which changes no digit: gradients in 16 bits do not vanish

Inner = Callable[[nn.Module, Batch], Callable[[Tensor], Tensor]]  # -> logits -> what the adversary maximises


def cross_entropy_from_labels(model: nn.Module, batch: Batch) -> Callable[[Tensor], Tensor]:
    """The cross-entropy, summed over the batch."""
    return lambda logits: functional.cross_entropy(logits, batch.labels, reduction="sum")


def divergence_from_clean(model: nn.Module, batch: Batch) -> Callable[[Tensor], Tensor]:
    """KL(clean || perturbed), summed over the batch: the adversary of TRADES."""
    with torch.no_grad():
        clean = model(batch.images).log_softmax(1)
    return lambda logits: functional.kl_div(logits.log_softmax(1), clean, reduction="sum", log_target=True)


INNER_LOSSES: dict[str, Inner] = {"ce": cross_entropy_from_labels, "trades": divergence_from_clean}

# (step, number of steps) -> factor of its length; 1 on average, so that a schedule changes no total.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": constant,
    "linear": falling,
}


@dataclass(frozen=True)
class Growth:
    """The set shrunk around the image at first, by a factor that reaches 1 in equal parts: networks that learn nothing
    from adversaries of full size may learn from small ones before.

    first    adversarial epoch
    epochs   with a smaller set (0: none)
    """

    first: int = 0
    epochs: int = 0

    def __call__(self, epoch: int) -> float:
        return min(1.0, (epoch - self.first + 1) / (self.epochs + 1))


@dataclass(frozen=True)
class PGD:
    """PGD inside {threat <= threshold} and a radius, projected in every step.

    The model is in evaluation mode meanwhile: an attack neither uses nor moves the statistics of its batch. Every image
    takes all steps: training wants the largest loss, not the first mistake. One step is fast adversarial training
    (Wong, Rice and Kolter 2020, arXiv 2001.03994).

    name   of the part
    size   of the set by the pixel
    loss   an entry of INNER_LOSSES
    reach      of all steps together, times the size (0: STEP, and SINGLE_STEP for one alone)
    schedule   an entry of SCHEDULES
    momentum   of the direction, which sums up those before, each times this factor (Dong et al. 2018, arXiv 1710.06081)
    starts     where it begins, told where it ended
    growth     by epoch, a factor of the perturbation: the whole set is smaller, and so are the steps
    """

    name: str
    threat: Threat
    threshold: float
    radius: float
    size: float
    steps: int
    seed: int
    loss: str = "ce"
    reach: float = 0.0
    schedule: str = "constant"
    momentum: float = 0.0
    starts: Starts = RandomStarts()
    growth: Callable[[int], float] = Growth()

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Part:
        bound = self.threat.bind(batch.images, batch.labels, **batch.context(self.threat))
        allowed = AttackSet.within(bound, self.threshold, self.radius)
        factor = self.growth(step.epoch)
        fresh = STARTS[self.starts.fresh](allowed, self.seed, batch.index, step.iteration)
        start = self.starts.begin(batch, fresh)
        with evaluation_mode(model):
            loss = INNER_LOSSES[self.loss](model, batch)

            def gradient_at(delta: Tensor) -> tuple[Tensor, None]:
                return _input_gradient(model, batch.images + factor * delta, loss), None

            course = SCHEDULES[self.schedule]
            delta = descend(gradient_at, allowed, start, self.steps, self.step_size, self.momentum, course)
        self.starts.end(batch, delta)
        return Part(self.name, (batch.images + factor * delta).clamp(0, 1), batch.labels)

    @property
    def step_size(self) -> float:
        """By the pixel, on average over the steps."""
        usual = STEP if self.steps > 1 else SINGLE_STEP
        return (self.reach or usual) / self.steps * self.size


def _input_gradient(model: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The direction of the gradient in the images alone: the weights get none."""
    inputs = images.clamp(0, 1).detach().requires_grad_(True)
    return input_gradient(LOSS_SCALE * loss(model(inputs)), inputs)
