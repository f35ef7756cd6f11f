"""What a batch is trained on: parts, each a set of images with targets, and the average of their losses.

    clean         the batch, or its mixup
    adversaries   the batch, perturbed inside a set
    additions     further images on a share of the batches

The loss of a batch is the mean over [main, *additions], main = w clean + (1 - w) mean(adversaries): switching parts
on does not change the size of the loss. All parts go through the model in one pass, so that batch normalisation sees
them together and DistributedDataParallel one forward for each backward.

Random numbers depend on seed, step and data set index alone, whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy
import torch
from torch import Tensor, nn


class Batch(Protocol):
    """This process's part of a global batch; `share` is its fraction of it, a partner another image of it."""

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def index(self) -> Tensor: ...

    @property
    def partner_images(self) -> Tensor: ...

    @property
    def partner_labels(self) -> Tensor: ...

    @property
    def share(self) -> float: ...


@dataclass(frozen=True)
class Moment:
    """Where training is: optimizer step and epoch, both counted from 0."""

    iteration: int
    epoch: int


@dataclass(frozen=True)
class Part:
    """Images [b,C,H,W] in [0, 1] and what they should be seen as: labels [b], or probabilities [b,K]."""

    images: Tensor
    targets: Tensor


Objective = Callable[[nn.Module, Batch, Moment], tuple[Tensor, Tensor]]  # -> loss, logits of the first part
Clean = Callable[[Batch, Moment], Part]
Adversary = Callable[[nn.Module, Batch, Moment], Part]
Additions = Callable[[Batch, Moment], Sequence[Part]]


def clean(batch: Batch, moment: Moment) -> Part:
    """The batch as it is."""
    return Part(batch.images, batch.labels)


@dataclass(frozen=True)
class Mixup:
    """Each image blended with another of the batch, as are their labels (Zhang et al. 2018, arXiv 1710.09412)."""

    alpha: float
    num_classes: int
    seed: int

    def __call__(self, batch: Batch, moment: Moment) -> Part:
        share = float(numpy.random.default_rng([self.seed, moment.iteration]).beta(self.alpha, self.alpha))
        one_hot = [torch.nn.functional.one_hot(y, self.num_classes) for y in (batch.labels, batch.partner_labels)]
        targets = share * one_hot[0] + (1 - share) * one_hot[1]
        return Part(share * batch.images + (1 - share) * batch.partner_images, targets)


@dataclass(frozen=True)
class Parts:
    """An objective made of parts; see the top of this file."""

    clean: Clean = clean
    adversaries: Sequence[Adversary] = ()
    additions: Additions = lambda batch, moment: ()
    clean_weight: float = 0.5
    adversaries_from: int = 0  # epoch

    def __call__(self, model: nn.Module, batch: Batch, moment: Moment) -> tuple[Tensor, Tensor]:
        weighted = self._weighted(model, batch, moment)
        parts = [part for part, _ in weighted]
        logits = model(torch.cat([part.images for part in parts]) if len(parts) > 1 else parts[0].images)
        scored = logits.split([len(part.images) for part in parts])
        losses = [
            weight * torch.nn.functional.cross_entropy(rows, part.targets)
            for rows, (part, weight) in zip(scored, weighted, strict=True)
        ]
        return torch.stack(losses).sum(), scored[0]

    def _weighted(self, model: nn.Module, batch: Batch, moment: Moment) -> list[tuple[Part, float]]:
        """The parts of this batch that count, each with its weight; the weights sum to 1."""
        adversaries = self.adversaries if moment.epoch >= self.adversaries_from else ()
        share = self.clean_weight if adversaries else 1.0
        additions = self.additions(batch, moment)
        made = [(self.clean(batch, moment), share)] if share > 0 else []
        # The attack sees the model without DistributedDataParallel: its passes are no part of the step.
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        if share < 1:
            made += [(adversary(inner, batch, moment), (1 - share) / len(adversaries)) for adversary in adversaries]
        made += [(part, 1.0) for part in additions]
        return [(part, weight / (1 + len(additions))) for part, weight in made]


standard: Objective = Parts()
