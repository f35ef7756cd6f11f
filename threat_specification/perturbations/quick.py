"""Quick changes of images, cheap enough for every batch of training: nine kinds, ours alone.

Each is a handful of tensor operations on the whole batch, on the device of the images; the host never waits for the
device. Their strengths are in registry.py. Where C or torchvision has a change of the same kind, severity 3 is about
as long in mean l2 as severity 3 of it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from threat_specification.perturbations.draws import Draws

TRUNCATE = 3  # a blur's kernel ends after this many standard deviations
NODES = 4  # random values along each side of a low field


def brighter(x: Tensor, draws: Draws, amount: float) -> Tensor:
    """Lift every value by `amount`; white stays white."""
    return x + amount


def darker(x: Tensor, draws: Draws, amount: float) -> Tensor:
    """Take away the share `amount` of the light; black stays black."""
    return x * (1 - amount)


def less_contrast(x: Tensor, draws: Draws, factor: float) -> Tensor:
    """Multiply the deviation from the mean of the whole image by a factor."""
    return torch.lerp(x.mean((1, 2, 3), keepdim=True), x, factor)


def soft_blur(x: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Blur with a Gaussian of standard deviation `sigma` in pixels, with replicated borders.

    A sum of moved images, not a convolution, whose last bits depend on the number of images.
    """
    reach = math.ceil(TRUNCATE * sigma)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-reach, reach + 1)]
    total = sum(weights)
    for dim, sides in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        padded, length = F.pad(x, sides, mode="replicate"), x.shape[dim]
        x = torch.zeros_like(x)
        for place, weight in enumerate(weights):
            x = torch.add(x, padded.narrow(dim, place, length), alpha=weight / total)
    return x


def fine_noise(x: Tensor, draws: Draws, scale: float) -> Tensor:
    """Uniform noise with standard deviation `scale`, which takes half the random numbers of a normal one."""
    reach = math.sqrt(3) * scale
    return x + draws.uniform(*x.shape[1:], low=-reach, high=reach)


def coarse_pixels(x: Tensor, draws: Draws, side: int, share: float) -> Tensor:
    """Move every pixel by `share` of the way to the mean of its block of side x side pixels; blocks end at the border.

    A share, since larger blocks of small images are too strong, and blocks of broken sides move edges about.
    """
    means = F.avg_pool2d(x, side, ceil_mode=True)
    blocks = F.interpolate(means, scale_factor=float(side), mode="nearest")
    return torch.lerp(x, blocks[..., : x.shape[2], : x.shape[3]], share)


def low_field(x: Tensor, draws: Draws, amount: float) -> Tensor:
    """Add a smooth random field of light and shadow, the same in all channels, whose mean square is amount squared.

    It goes through random values at NODES x NODES points, by cubic interpolation.
    """
    field = draws.uniform(1, NODES, NODES, low=-1.0)
    field = F.interpolate(field, size=x.shape[2:], mode="bicubic", align_corners=True)
    length = torch.linalg.vector_norm(field, dim=(2, 3), keepdim=True)
    return x + field * (amount * math.sqrt(field[0].numel()) / length.clamp_min(1e-12))


def shift(x: Tensor, draws: Draws, share: float) -> Tensor:
    """Move the image in a random direction by the fraction `share` of its shorter side, at least a pixel.

    Whole pixels; what comes in is the border, replicated.
    """
    height, width = x.shape[2:]
    angle = draws.uniform(high=2 * math.pi)
    way = torch.stack((angle.sin(), angle.cos())) * max(1, round(share * min(height, width)))
    down, right = way.round().long().unsqueeze(2)  # [B, 1] each
    rows = (torch.arange(height, device=x.device) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + right).clamp(0, width - 1)
    source = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(1).unsqueeze(1)
    return x.flatten(2).gather(2, source.expand(-1, x.shape[1], -1)).view_as(x)


def fewer_levels(x: Tensor, draws: Draws, levels: int) -> Tensor:
    """Round every value to the nearest of `levels` evenly spaced ones, black and white among them."""
    return (x * (levels - 1)).round() / (levels - 1)
