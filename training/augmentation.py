"""Everything that changes the images of a batch: crop, flip, cutout; Mixup and CutMix; nonisotropic augmentation.

    Transform   (images [B,C,H,W], index [B], draw) -> images; those that move pixels can be taken back (`undo`)
    Clean       (batch, step) -> the part that takes the place of the clean one: two images in one, with both labels
    Additions   (batch, step) -> further parts

What an image gets depends on seed, data set index and step alone. torchvision's Mixup and CutMix draw from the global
generator and roll the part of each process, which the number of processes would change.
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
    """Shift each image by up to `padding` pixels in either direction; zeros come in from outside."""

    padding: int
    seed: int

    def __call__(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        return shifted(images, *self._windows(index, draw), self.padding)

    def undo(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        top, left = self._windows(index, draw)
        return shifted(images, 2 * self.padding - top, 2 * self.padding - left, self.padding)

    def _windows(self, index: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """Upper left corners in the padded images, [B] each."""
        shift = (uniform(self.seed, index, draw, (2,)) * (2 * self.padding + 1)).long()
        return shift[:, 0], shift[:, 1]


def shifted(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """The windows of the padded images at (top, left), [B] each in [0, 2 padding]."""
    height, width = images.shape[2:]
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view, [B, C, 2p+1, 2p+1, H, W]
    return windows[torch.arange(len(images), device=images.device), :, top, left]


@dataclass(frozen=True)
class RandomFlip:
    """Mirror every other image, left to right."""

    seed: int

    def __call__(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        flip = uniform(self.seed, index, draw, (1, 1, 1)) < 0.5
        return torch.where(flip, images.flip(3), images)

    undo = __call__


@dataclass(frozen=True)
class Cutout:
    """Zeros in a square of side `size` around a random pixel, clipped at the border (DeVries and Taylor 2017,
    arXiv 1708.04552)."""

    size: int
    seed: int

    def __call__(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        places = uniform(self.seed, index, draw, (2,))
        inside = [self._covers(images.shape[2 + axis], places[:, axis : axis + 1]) for axis in (0, 1)]
        return images.masked_fill((inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1), 0.0)

    def _covers(self, length: int, place: Tensor) -> Tensor:
        """Which of `length` pixels the square covers, [B, length]."""
        first = (place * length).long() - self.size // 2
        pixels = torch.arange(length, device=place.device)
        return (pixels >= first) & (pixels < first + self.size)


@dataclass(frozen=True)
class Chain:
    """One transform after the other."""

    transforms: Sequence[Transform]

    def __call__(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        for transform in self.transforms:
            images = transform(images, index, draw)
        return images


@dataclass(frozen=True)
class Movements(Chain):
    """One movement after the other."""

    transforms: Sequence[Movement]

    def undo(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        for movement in reversed(self.transforms):
            images = movement.undo(images, index, draw)
        return images


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

    def __call__(self, batch: Batch, step: Step) -> Sequence[Part]:
        chance = torch.rand(1, generator=torch.Generator().manual_seed((self.seed + step.iteration) % 2**63))
        if float(chance) * self.frequency >= 1:
            return ()
        return self.parts(batch, step.iteration)

    def parts(self, batch: Batch, draw: int) -> list[Part]:
        """Both, for any batch: the other image, then the noise."""
        bound = self.threat.bind(batch.images, batch.labels, **batch.context(self.threat))
        noise = self.mean + self.std * _normal(self.seed, batch.index, draw, tuple(batch.images.shape[1:]))
        changes = (difference(batch.partner_images, batch.images), noise)
        return [
            Part("N_aug", (batch.images + bound.project(change, self.threshold)).clamp(0, 1), batch.labels)
            for change in changes
        ]


def _normal(seed: int, index: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers that depend on (seed, index, draw) alone, by the inverse of their distribution."""
    # Away from 0 and 1, where the inverse is infinite.
    return torch.special.ndtri(uniform(seed, index, draw, shape).clamp(2**-25, 1 - 2**-24))
