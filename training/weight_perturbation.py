"""Adversarial weight perturbation (Wu, Xia and Wang 2020, arXiv 2004.05884)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from foundations.modes import buffers_kept
from training.objectives import Part, Scores


class Objective(Protocol):
    """The part of an objective's interface that is needed here."""

    def score(self, model: nn.Module, parts: Sequence[Part]) -> Scores: ...


@contextmanager
def as_they_are(model: nn.Module, objective: Objective, parts: Sequence[Part], share: float = 1.0) -> Iterator[None]:
    """A block without any perturbation of the weights."""
    yield


@dataclass(frozen=True)
class AdversarialWeights:
    """A perturbation for the duration of a block: weights w become w + gamma ||w|| g / ||g||.

    It is applied to every weight tensor w of two or more dimensions; g is the gradient of the batch's loss with respect
    to w, summed over the parts of all processes, weighted by their shares of the batch, so that all stand at the same
    weights. After the block the weights are bit-identical to those before. Buffers do not change, and the perturbation
    itself leaves no gradient on the weights. Weights that the network does not use stay as they are. For batches
    without an adversary nothing is perturbed. The block is given the scores at the weights as they are, or None.
    """

    gamma: float

    @contextmanager
    def __call__(
        self, model: nn.Module, objective: Objective, parts: Sequence[Part], share: float = 1.0
    ) -> Iterator[Scores | None]:
        weights = [weight for weight in model.parameters() if weight.requires_grad and weight.dim() > 1]
        if not any(part.name in ("adv", "N_adv") for part in parts):
            yield None
            return
        with buffers_kept(model):
            scores = objective.score(model, parts)
            found = torch.autograd.grad(scores.loss, weights, allow_unused=True)
        used = [(weight, gradient) for weight, gradient in zip(weights, found, strict=True) if gradient is not None]
        kept = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            gradients = _summed([gradient * share for _, gradient in used])
            for (weight, _), whole in zip(used, gradients, strict=True):
                weight.add_(whole * (self.gamma * weight.norm() / whole.norm().clamp_min(1e-20)))
        try:
            yield scores
        finally:
            with torch.no_grad():
                for weight, before in zip(weights, kept, strict=True):
                    weight.copy_(before)


def _summed(values: list[Tensor]) -> list[Tensor]:
    """Their sums over all processes, where there are several: one collective operation."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    together = torch.cat([each.flatten() for each in values])
    torch.distributed.all_reduce(together)
    parts = together.split([each.numel() for each in values])
    return [part.view_as(each) for part, each in zip(parts, values, strict=True)]
