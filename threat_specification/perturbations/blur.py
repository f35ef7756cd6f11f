"""The blurs of Hendrycks and Dietterich (2019)."""

from __future__ import annotations

import math

import numpy
import torch
from torch import Tensor

from threat_specification.perturbations import filters
from threat_specification.perturbations.draws import Draws

DISK = 8  # minimum of half the side of a disk's kernel


def gaussian_blur(x: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Blur with a Gaussian of standard deviation `sigma` in pixels."""
    return filters.gaussian_blur(x, sigma)


def defocus_blur(x: Tensor, draws: Draws, radius: float, alias: float) -> Tensor:
    """Blur with a disk of this radius, whose edge is smoothed by a Gaussian of standard deviation `alias`."""
    side = max(DISK, math.ceil(radius))
    along = torch.arange(-side, side + 1, dtype=torch.float32)
    disk = (along.view(-1, 1).square() + along.view(1, -1).square() <= radius**2).float()
    soft = filters.gaussian_kernel(alias, 1 if radius <= DISK else 2)
    return filters.convolve(x, filters.convolve((disk / disk.sum())[None, None], torch.outer(soft, soft))[0, 0])


def motion_blur(x: Tensor, draws: Draws, radius: int, sigma: float) -> Tensor:
    """Blur along a random direction within 45 degrees of the horizontal."""
    return filters.motion_blur(x, radius, sigma, draws.uniform(low=-math.pi / 4, high=math.pi / 4))


def zoom_blur(x: Tensor, draws: Draws, largest: float, step: float) -> Tensor:
    """Mean of the image and its enlargements by factors from 1 to `largest` (excluded) at intervals of `step`."""
    factors = numpy.arange(1, largest, step).tolist()
    return (x + sum(filters.zoom(x, factor) for factor in factors)) / (len(factors) + 1)


def glass_blur(x: Tensor, draws: Draws, sigma: float, reach: int, rounds: int) -> Tensor:
    """Blur, copy to every pixel inside the border one at most `reach` away, and blur again.

    The paper speaks of swaps; the code that made CIFAR-10-C and ImageNet-C copies, and so does this. From the last
    pixel to the first: each depends on the earlier ones, so they are processed one by one, but for all images of the
    batch together.
    """
    batch, channels, height, width = x.shape
    place = numpy.tile(numpy.arange(height * width), (batch, 1)).T.copy()
    images = numpy.arange(batch)
    for _ in range(rounds):
        down, right = ((draws.integers(2 * reach, height, width) - reach).cpu().numpy() for _ in range(2))
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                there = (row + down[:, row, column]) * width + column + right[:, row, column]
                place[row * width + column] = place[there, images]
    source = torch.from_numpy(place.T.copy()).to(x.device).unsqueeze(1).expand(-1, channels, -1)
    shuffled = filters.gaussian_blur(x, sigma).flatten(2).gather(2, source).view_as(x)
    return filters.gaussian_blur(shuffled, sigma)
