"""What takes the place of the clean part: two images in one, with the labels of both.

The two are partners in the global batch, and the share is one for the batch, drawn from (seed, step): torchvision's
versions draw from the global generator and roll the part of each process, which the number of processes would change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from foundations.step import Step
from training.batch import Batch
from training.objectives import Clean, Part


@dataclass(frozen=True)
class Mixup:
    """Each image blended with another of the batch, as are their labels (Zhang et al. 2018, arXiv 1710.09412)."""

    alpha: float
    num_classes: int
    seed: int

    def __call__(self, batch: Batch, step: Step) -> Part:
        share = float(_generator(self.seed, step).beta(self.alpha, self.alpha))
        images = share * batch.images + (1 - share) * batch.partner_images
        return Part("clean", images, blended(batch, share, self.num_classes))


@dataclass(frozen=True)
class CutMix:
    """A rectangle of each image replaced by that of another; labels by area (Yun et al. 2019, arXiv 1905.04899)."""

    alpha: float
    num_classes: int
    seed: int

    def __call__(self, batch: Batch, step: Step) -> Part:
        generator = _generator(self.seed, step)
        share = float(generator.beta(self.alpha, self.alpha))
        height, width = batch.images.shape[2:]
        top, bottom = _side(height, share, int(generator.integers(height)))
        left, right = _side(width, share, int(generator.integers(width)))
        images = batch.images.clone()
        images[:, :, top:bottom, left:right] = batch.partner_images[:, :, top:bottom, left:right]
        kept = 1 - (bottom - top) * (right - left) / (height * width)
        return Part("clean", images, blended(batch, kept, self.num_classes))


@dataclass(frozen=True)
class OneOf:
    """One of several, at random for each batch."""

    choices: Sequence[Clean]
    seed: int

    def __call__(self, batch: Batch, step: Step) -> Part:
        return self.choices[int(_generator(self.seed, step).integers(len(self.choices)))](batch, step)


def blended(batch: Batch, share: float, num_classes: int) -> Tensor:
    """Probabilities [b,K]: `share` for the label of each image, the rest for its partner's."""
    one_hot = [torch.nn.functional.one_hot(y, num_classes) for y in (batch.labels, batch.partner_labels)]
    return share * one_hot[0] + (1 - share) * one_hot[1]


def _generator(seed: int, step: Step) -> numpy.random.Generator:
    return numpy.random.default_rng([seed, step.iteration])


def _side(length: int, share: float, middle: int) -> tuple[int, int]:
    """Where the rectangle begins and ends along one axis; its area is 1 - share unless the border cuts it."""
    half = int(length * (1 - share) ** 0.5) // 2
    return max(0, middle - half), min(length, middle + half)
