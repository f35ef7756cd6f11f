"""Certified training by intervals (Gowal et al. 2018, arXiv 1810.12715): the loss of the worst logits in a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from foundations.errors import UsageError
from foundations.plain_networks import PlainNetwork, margins
from foundations.step import Step
from training.batch import Batch
from training.objectives import Part

NAME = "certified"  # of the part


@dataclass(frozen=True)
class IntervalLoss:
    """A part of the loss whose logits are the worst ones within a radius, beside the other parts.

    Over the first `steps` steps the radius grows from 0 and the weight of the others falls from 1, in equal parts.

    network        the one that is trained
    radius         in l-inf, within the pixel box
    clean_weight   weight of the other parts at the end (kappa)
    """

    network: PlainNetwork
    radius: float
    clean_weight: float
    steps: int

    def __call__(self, batch: Batch, step: Step, main: Sequence[Part]) -> list[Part]:
        grown = min(1.0, (step.iteration + 1) / max(1, self.steps))
        share = 1 - (1 - self.clean_weight) * grown
        answers = partial(worst_logits, self.network, self.radius * grown)
        made = [replace(part, weight=part.weight * share) for part in main]
        return [*made, Part(NAME, batch.images, batch.labels, 1 - share, answers=answers)]


def read(model: nn.Module) -> PlainNetwork:
    """The model as steps that use its weights as they are at each moment; raises UsageError if it is not one."""
    network = PlainNetwork.read(model, "--certified_train")
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):
            raise UsageError(
                f"--certified_train: layer {name}, {type(layer).__name__}: its statistics change with every batch; "
                "choose a model without batch normalisation, such as lenet or conv"
            )
    if not network.steps or not network.steps[-1].is_affine:
        raise UsageError("--certified_train: expected a model that ends in a linear layer")
    return network


def worst_logits(network: PlainNetwork, radius: float, images: Tensor, labels: Tensor) -> Tensor:
    """0 for the label, and for each other class an upper bound of its logit less that of the label; [B,K].

    By intervals, but for the last layer, whose differences of logits are bounded as they are.
    """
    low, high = network.intervals((images - radius).clamp_min(0), (images + radius).clamp_max(1), -1)[-1]
    with torch.no_grad():
        num_classes = network.steps[-1](low).shape[1]
    factors, which = margins(labels, num_classes, images.dtype)
    slope, constant = network.steps[-1].below(factors, low[which], high[which])
    least = torch.minimum(slope * low[which], slope * high[which]).flatten(1).sum(1) + constant
    others = (factors < 0).nonzero()[:, 1]
    return images.new_zeros(len(labels), num_classes).index_put((which, others), -least)
