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

    The paper speaks of swaps; the code that made CIFAR-10-C and ImageNet-C copies, from the last pixel to the first,
    and so does this. A pixel that copies from a later one takes what that one has taken; such chains are followed for
    all pixels together, in steps that double.
    """
    batch, channels, height, width = x.shape
    here = torch.arange(height * width, device=x.device)
    row, column = here // width, here % width
    inner = (row > reach) & (row <= height - reach) & (column > reach) & (column <= width - reach)
    place = here.expand(batch, -1)
    for _ in range(rounds):
        down, right = (draws.integers(2 * reach, height, width).flatten(1) - reach for _ in range(2))
        there = torch.where(inner, here + down * width + right, here)
        last = torch.where((there > here) & inner[there], there, here.expand(batch, -1))
        while not torch.equal(last, further := last.gather(1, last)):
            last = further
        place = place.gather(1, there.gather(1, last))
    source = place.unsqueeze(1).expand(-1, channels, -1)
    shuffled = filters.gaussian_blur(x, sigma).flatten(2).gather(2, source).view_as(x)
    return filters.gaussian_blur(shuffled, sigma)
