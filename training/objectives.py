"""Training objectives: a batch becomes parts, each a set of images with targets; their losses are combined.

    clean         the batch itself, or its images mixed by Mixup or CutMix
    adversaries   the batch, perturbed inside a set
    additions     further images, for a share of the batches

The loss of a batch is the mean over [main, *additions]. `Averaged` or `Trades` combine the clean part and the
adversaries into main. For `Averaged` it is w clean + (1 - w) mean(adversaries), so that further parts do not change the
scale of the loss. All parts go through the model in one pass, so that batch normalisation uses the statistics of all of
them, and DistributedDataParallel has one forward pass for each backward pass.

Random numbers depend only on seed, step and data set index, not on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from foundations.step import Step
from threat_specification.attacks.base import predicted
from training.batch import Batch

# (logits, targets, logits of the clean images without mixing, label smoothing) -> mean over the batch
PartLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor, reference: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with labels [b] or probabilities [b,K] as targets."""
    return functional.cross_entropy(logits, targets, label_smoothing=smoothing)


def divergence(logits: Tensor, targets: Tensor, reference: Tensor, smoothing: float) -> Tensor:
    """KL(clean || perturbed), the second term of TRADES (Zhang et al. 2019, arXiv 1901.08573, equation 5)."""
    return functional.kl_div(logits.log_softmax(1), reference.log_softmax(1), reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class Part:
    """Images [b,C,H,W] in [0, 1] and their targets: labels [b], or probabilities [b,K].

    name     name of the part; accuracies in the history of a run are stored by name
    weight   weight of the part's loss in the loss of the batch
    answers  (images, targets) -> logits, in place of those of a pass through the model
    """

    name: str
    images: Tensor
    targets: Tensor
    weight: float = 1.0
    loss: PartLoss = cross_entropy
    answers: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Scores:
    """The loss of a batch, and the model's accuracy on its parts, by name."""

    loss: Tensor
    correct: dict[str, Tensor]


Clean = Callable[[Batch, Step], Part]
Adversary = Callable[[nn.Module, Batch, Step], Part]
Additions = Callable[[Batch, Step], Sequence[Part]]
Combine = Callable[[Batch, Part, Sequence[Part]], list[Part]]  # (batch, clean, adversaries) -> parts of main, weighted

Certify = Callable[[Batch, Step, Sequence[Part]], Sequence[Part]]  # (batch, step, main) -> main with worst logits


def clean(batch: Batch, step: Step) -> Part:
    """The batch itself, without mixing."""
    return Part("clean", batch.images, batch.labels)


def uncertified(batch: Batch, step: Step, main: Sequence[Part]) -> Sequence[Part]:
    """No part of worst logits."""
    return main


@dataclass(frozen=True)
class Averaged:
    """w clean + (1 - w) mean(adversaries), all by cross-entropy; w = 0 is Madry et al. 2018 (arXiv 1706.06083)."""

    clean_weight: float = 0.5

    def __call__(self, batch: Batch, clean: Part, adversaries: Sequence[Part]) -> list[Part]:
        share = self.clean_weight if adversaries else 1.0
        made = [replace(clean, weight=share)] if share > 0 else []
        if share < 1:
            made += [replace(part, weight=(1 - share) / len(adversaries)) for part in adversaries]
        return made


@dataclass(frozen=True)
class Trades:
    """clean + beta * mean over adversaries of KL(clean || perturbed): a sum as published, not an average."""

    beta: float = 6.0

    def __call__(self, batch: Batch, clean: Part, adversaries: Sequence[Part]) -> list[Part]:
        if not adversaries:
            return [clean]
        # If the clean part is mixed, the images without mixing are needed as well, as the reference of the divergence.
        reference = [] if clean.images is batch.images else [Part("reference", batch.images, batch.labels, weight=0.0)]
        weight = self.beta / len(adversaries)
        return [clean, *reference, *(replace(part, weight=weight, loss=divergence) for part in adversaries)]


@dataclass(frozen=True)
class Parts:
    """An objective made of parts; see the docstring of this module."""

    clean: Clean = clean
    adversaries: Sequence[Adversary] = ()
    additions: Additions = lambda batch, step: ()
    combine: Combine = Averaged()
    certify: Certify = uncertified
    adversaries_from: int = 0  # first epoch with adversaries
    label_smoothing: float = 0.0

    def make(self, model: nn.Module, batch: Batch, step: Step) -> list[Part]:
        """The parts of this batch, with their weights. Attacks call the model but leave it unchanged."""
        adversaries = self.adversaries if step.epoch >= self.adversaries_from else ()
        perturbed = [adversary(model, batch, step) for adversary in adversaries]
        main = self.certify(batch, step, self.combine(batch, self.clean(batch, step), perturbed))
        additions = self.additions(batch, step)
        return [replace(part, weight=part.weight / (1 + len(additions))) for part in (*main, *additions)]

    def score(self, model: nn.Module, parts: Sequence[Part]) -> Scores:
        """Pass all parts through the model at once; returns the sum of their weighted losses, and accuracies."""
        passed = [part.images for part in parts if part.answers is None]
        logits = iter(model(torch.cat(passed) if len(passed) > 1 else passed[0]).split([len(each) for each in passed]))
        rows = [part.answers(part.images, part.targets) if part.answers else next(logits) for part in parts]
        names = [part.name for part in parts]
        reference = rows[names.index("reference") if "reference" in names else 0]
        losses = [
            part.weight * part.loss(answers, part.targets, reference, self.label_smoothing)
            for answers, part in zip(rows, parts, strict=True)
        ]
        scored = [(part, answers.detach()) for part, answers in zip(parts, rows, strict=True) if part.name in COUNTED]
        return Scores(torch.stack(losses).sum(), {part.name: _correct(answers, part) for part, answers in scored})


COUNTED = ("clean", "adv", "N_adv", "certified")  # names of the parts whose accuracy is stored in the history


def _correct(logits: Tensor, part: Part) -> Tensor:
    labels = part.targets if part.targets.dim() == 1 else part.targets.argmax(1)
    return (predicted(logits) == labels).float().mean()


standard = Parts()
