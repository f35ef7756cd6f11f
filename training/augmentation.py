"""Augmentation of the images of a batch: crop, flip, cutout; Mixup and CutMix; nonisotropic augmentation.

AugMix has its own file, training/augmix.py.

    Transform   (images [B,C,H,W], index [B], draw) -> images; those that move pixels can be reversed (`undo`)
    Clean       (batch, step) -> a part that replaces the clean one: two images mixed into one, with both labels
    Additions   (batch, step) -> further parts

The augmentation of an image depends only on seed, data set index and step. torchvision's Mixup and CutMix are not used:
they draw from the global generator and pair images by a roll within each process, so that their result depends on the
number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from foundations.step import Step
from threat_specification.attacks.random_numbers import uniform
from threat_specification.base import Threat, difference
from training.batch import Batch, Movement, Transform
from training.objectives import Clean, Part


@dataclass(frozen=True)
class RandomCrop:
    """Shift each image by up to `padding` pixels in every direction; pixels from outside the image are 0."""

    padding: int
    seed: int

    def __call__(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        return shifted(images, *self._windows(index, draw), self.padding)

    def undo(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        top, left = self._windows(index, draw)
        return shifted(images, 2 * self.padding - top, 2 * self.padding - left, self.padding)

    def _windows(self, index: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """Top and left edges of the windows in the padded images, [B] each."""
        shift = (uniform(self.seed, index, draw, (2,)) * (2 * self.padding + 1)).long()
        return shift[:, 0], shift[:, 1]


def shifted(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Windows of the padded images, of the size of the images; top, left: [B] each, in [0, 2 padding]."""
    height, width = images.shape[2:]
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view, [B, C, 2p+1, 2p+1, H, W]
    return windows[torch.arange(len(images), device=images.device), :, top, left]


@dataclass(frozen=True)
class RandomFlip:
    """Flip each image horizontally with probability 1/2."""

    seed: int

    def __call__(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        flip = uniform(self.seed, index, draw, (1, 1, 1)) < 0.5
        return torch.where(flip, images.flip(3), images)

    undo = __call__


@dataclass(frozen=True)
class Cutout:
    """Set a square of side `size` around a random pixel to 0, clipped at the border.

    DeVries and Taylor 2017, arXiv 1708.04552.
    """

    size: int
    seed: int

    def __call__(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        places = uniform(self.seed, index, draw, (2,))
        inside = [self._covers(images.shape[2 + axis], places[:, axis : axis + 1]) for axis in (0, 1)]
        return images.masked_fill((inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1), 0.0)

    def _covers(self, length: int, place: Tensor) -> Tensor:
        """Mask [B, length] of the pixels along one axis that the square covers; place: [B,1] in [0, 1)."""
        first = (place * length).long() - self.size // 2
        pixels = torch.arange(length, device=place.device)
        return (pixels >= first) & (pixels < first + self.size)


@dataclass(frozen=True)
class Chain:
    """Several transforms, applied in order."""

    transforms: Sequence[Transform]

    def __call__(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        for transform in self.transforms:
            images = transform(images, index, draw)
        return images


@dataclass(frozen=True)
class Movements(Chain):
    """Several movements, applied in order; `undo` reverses them in the opposite order."""

    transforms: Sequence[Movement]

    def undo(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        for movement in reversed(self.transforms):
            images = movement.undo(images, index, draw)
        return images


@dataclass(frozen=True)
class Mixup:
    """Blend each image with another of the batch, and their labels likewise (Zhang et al. 2018, arXiv 1710.09412)."""

    alpha: float
    num_classes: int
    seed: int

    def __call__(self, batch: Batch, step: Step) -> Part:
        share = float(_generator(self.seed, step).beta(self.alpha, self.alpha))
        images = share * batch.images + (1 - share) * batch.partner_images
        return Part("clean", images, blended(batch, share, self.num_classes))


@dataclass(frozen=True)
class CutMix:
    """Replace a rectangle of each image by that of another image of the batch; labels are weighted by area.

    Yun et al. 2019, arXiv 1905.04899.
    """

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
    """One of several choices, drawn at random for each batch."""

    choices: Sequence[Clean]
    seed: int

    def __call__(self, batch: Batch, step: Step) -> Part:
        return self.choices[int(_generator(self.seed, step).integers(len(self.choices)))](batch, step)


def blended(batch: Batch, share: float, num_classes: int) -> Tensor:
    """Target probabilities [b,K]: `share` for the label of each image, 1 - `share` for the label of its partner."""
    one_hot = [torch.nn.functional.one_hot(y, num_classes) for y in (batch.labels, batch.partner_labels)]
    return share * one_hot[0] + (1 - share) * one_hot[1]


def _generator(seed: int, step: Step) -> numpy.random.Generator:
    return numpy.random.default_rng([seed, step.iteration])


def _side(length: int, share: float, middle: int) -> tuple[int, int]:
    """First and last (exclusive) pixel of the rectangle along one axis, clipped at the border.

    Without clipping its share of the area is 1 - share, up to rounding.
    """
    half = int(length * (1 - share) ** 0.5) // 2
    return max(0, middle - half), min(length, middle + half)


@dataclass(frozen=True)
class NonisotropicAugmentation:
    """Two further parts for a random 1/`frequency` of the batches, each with the labels of the original images.

    The parts are another image of the batch, and the image with Gaussian noise. Each is projected into the set
    {PD <= threshold} and the pixel box around the original image, by the projection that the threat is configured with.
    """

    threat: Threat
    threshold: float
    frequency: int
    mean: float
    std: float
    seed: int

    def __call__(self, batch: Batch, step: Step) -> Sequence[Part]:
        chance = torch.rand(1, generator=torch.Generator().manual_seed((self.seed + step.iteration) % 2**63))
        if float(chance) * self.frequency >= 1:
            return ()
        return self.parts(batch, step.iteration)

    def parts(self, batch: Batch, draw: int) -> list[Part]:
        """Both parts for any batch: the other image, then the noise."""
        noise = self.mean + self.std * _normal(self.seed, batch.index, draw, tuple(batch.images.shape[1:]))
        changes = (difference(batch.partner_images, batch.images), noise)
        with self.threat.session():
            bound = self.threat.bind(batch.images, batch.labels, **batch.context(self.threat))
            projected = [bound.project(change, self.threshold) for change in changes]
        return [Part("N_aug", (batch.images + change).clamp(0, 1), batch.labels) for change in projected]


def _normal(seed: int, index: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers that depend only on (seed, index, draw), by the inverse of the distribution function."""
    # The inverse is infinite at 0 and 1.
    return torch.special.ndtri(uniform(seed, index, draw, shape).clamp(2**-25, 1 - 2**-24))
