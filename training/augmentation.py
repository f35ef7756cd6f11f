"""Crop, flip and cutout of whole batches on their device. What an image gets depends on (seed, index, draw) alone.

An entry of a pipeline is a `Transform`: (images [B,C,H,W], index [B], draw) -> images of the same shape. Those that
move pixels can be taken back (`undo`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threat_specification.attacks.random_numbers import uniform
from training.batch import Movement, Transform


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
