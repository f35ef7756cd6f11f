"""Adversaries for training, which perturb images inside a set."""

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
from threat_specification.safe_moves.mixtures import MixtureSet, SafeMoves
from training.batch import Batch
from training.objectives import Part
from training.starts import RandomStarts, Starts

STEP = 2.5  # total length of several steps, relative to the size of the set (Madry et al. 2018)
SINGLE_STEP = 1.25  # length of a single step; longer ones cause catastrophic overfitting (Wong et al. 2020)
LOSS_SCALE = 1024.0  # against underflow of 16-bit gradients; a power of two, so that scaling is exact

MOVES_SEED = 1_000_003  # between the seeds of the safe changes of two steps of the optimizer

Moves = Callable[[Tensor, Tensor, int], Tensor]  # (images, rows of the data set, seed) -> changed images [b,K,C,H,W]
Inner = Callable[[nn.Module, Batch], Callable[[Tensor], Tensor]]  # (model, batch) -> logits -> loss to maximise


def cross_entropy_from_labels(model: nn.Module, batch: Batch) -> Callable[[Tensor], Tensor]:
    """Cross-entropy, summed over the batch."""
    return lambda logits: functional.cross_entropy(logits, batch.labels, reduction="sum")


def divergence_from_clean(model: nn.Module, batch: Batch) -> Callable[[Tensor], Tensor]:
    """KL(clean || perturbed), summed over the batch: the adversary of TRADES."""
    with torch.no_grad():
        clean = model(batch.images).log_softmax(1)
    return lambda logits: functional.kl_div(logits.log_softmax(1), clean, reduction="sum", log_target=True)


INNER_LOSSES: dict[str, Inner] = {"ce": cross_entropy_from_labels, "trades": divergence_from_clean}

# (step, number of steps) -> factor of the step's length; 1 on average, so that the total length stays the same.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": constant,
    "linear": falling,
}


@dataclass(frozen=True)
class Growth:
    """A factor of the perturbation that increases linearly to 1 over the first adversarial epochs.

    Networks that do not learn from perturbations of full size from the start may learn if smaller ones come first.

    first    first adversarial epoch
    epochs   number of epochs with a factor below 1 (0: none)
    """

    first: int = 0
    epochs: int = 0

    def __call__(self, epoch: int) -> float:
        return min(1.0, (epoch - self.first + 1) / (self.epochs + 1))


@dataclass(frozen=True)
class PGD:
    """PGD inside {threat <= threshold, l-inf norm <= radius}, with a projection in every step.

    During the attack the model is in evaluation mode, so that batch normalisation neither uses nor updates the
    statistics of the perturbed batch. Every image takes all steps, since training needs the largest loss, not the first
    misclassification. With one step this is fast adversarial training (Wong, Rice and Kolter 2020, arXiv 2001.03994).

    name       name of the part
    size       size of the set, as a change of each pixel
    loss       an entry of INNER_LOSSES
    reach      total length of all steps, relative to the size (0: STEP, or SINGLE_STEP for one step)
    schedule   an entry of SCHEDULES
    momentum   factor of the previous direction in the next one (Dong et al. 2018, arXiv 1710.06081)
    starts     starting points
    growth     epoch -> factor of the perturbation, which shrinks the whole set and all steps alike
    moves      safe changes of a batch, given its images, rows and a seed, [b,K,C,H,W]: the set is then that of their
               mixtures plus noise up to the radius. They are new at every step of the optimizer
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
    moves: Moves | None = None

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Part:
        with self.threat.session():
            return self._perturbed(model, batch, step)

    def _perturbed(self, model: nn.Module, batch: Batch, step: Step) -> Part:
        allowed = self._allowed(batch, step)
        factor = self.growth(step.epoch)
        fresh = STARTS[self.starts.fresh](allowed, self.seed, batch.index, step.iteration)
        start = self.starts.begin(batch, fresh)
        with evaluation_mode(model):
            loss = INNER_LOSSES[self.loss](model, batch)

            def gradient_at(delta: Tensor) -> tuple[Tensor, None]:
                return allowed.pull_back(_input_gradient(model, allowed.image(factor * delta), loss), delta), None

            course = SCHEDULES[self.schedule]
            size = self.step_size if self.moves is None else self.step_share * allowed.reach
            delta = descend(gradient_at, allowed, start, self.steps, size, self.momentum, course)
        self.starts.end(batch, delta)
        return Part(self.name, allowed.image(factor * delta), batch.labels)

    def _allowed(self, batch: Batch, step: Step) -> AttackSet:
        bound = self.threat.bind(batch.images, batch.labels, **batch.context(self.threat))
        if self.moves is None:
            return AttackSet.within(bound, self.threshold, self.radius)
        changed = self.moves(batch.images, batch.index, self.seed + MOVES_SEED * step.iteration)
        return MixtureSet.of(SafeMoves(bound, changed), self.threshold, self.radius)

    @property
    def step_share(self) -> float:
        """Length of a step in units of the set's size, averaged over the steps."""
        usual = STEP if self.steps > 1 else SINGLE_STEP
        return (self.reach or usual) / max(1, self.steps)

    @property
    def step_size(self) -> float:
        """Length of a step as a change of each pixel, averaged over the steps."""
        return self.step_share * self.size


def _input_gradient(model: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient with respect to the images in [0, 1], times LOSS_SCALE; the weights get no gradient."""
    inputs = images.detach().requires_grad_(True)
    return input_gradient(LOSS_SCALE * loss(model(inputs)), inputs)
