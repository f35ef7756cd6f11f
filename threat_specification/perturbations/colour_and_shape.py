"""Common augmentations of torchvision v2, which has no severities: the strengths in registry.py are our own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from foundations.pixels import as_floats
from threat_specification.perturbations import filters
from threat_specification.perturbations.draws import Draws

BILINEAR = InterpolationMode.BILINEAR


def color_jitter(x: Tensor, draws: Draws, strength: float) -> Tensor:
    """Change brightness, contrast and saturation by up to +-strength, and hue by up to a quarter of that.

    In images without three channels only brightness and contrast change.
    """
    factors = 1 + strength * draws.uniform(3, low=-1.0)
    hue = strength / 4 * draws.uniform(low=-1.0)

    def jitter(image: Tensor, row: int) -> Tensor:
        bright, contrasted, saturated = factors[row].tolist()
        if len(image) != 3:
            image = (image * bright).clamp(0, 1)
            return torch.lerp(image.mean(), image, contrasted)
        image = functional.adjust_contrast(functional.adjust_brightness(image, bright), contrasted)
        return functional.adjust_hue(functional.adjust_saturation(image, saturated), float(hue[row]))

    return _each(jitter, x)


def affine(x: Tensor, draws: Draws, degrees: float, shift: float) -> Tensor:
    """Rotate by up to `degrees`, shear by up to half of that, translate and scale by up to the fraction `shift`.

    Pixels from outside the image are black.
    """
    amounts = draws.uniform(5, low=-1.0)
    height, width = x.shape[2:]

    def move(image: Tensor, row: int) -> Tensor:
        turn, right, down, scale, shear = amounts[row].tolist()
        translate = [round(right * shift * width), round(down * shift * height)]
        shears = [shear * degrees / 2, 0.0]
        return functional.affine(image, turn * degrees, translate, 1 + scale * shift, shears, interpolation=BILINEAR)

    return _each(move, x)


def perspective(x: Tensor, draws: Draws, distortion: float) -> Tensor:
    """Move the corners inwards by up to the fraction `distortion` of half the side."""
    height, width = x.shape[2:]
    inwards = draws.uniform(4, 2) * distortion / 2
    corners = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    sides = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])

    def tilt(image: Tensor, row: int) -> Tensor:
        moved = torch.tensor(corners) + sides * inwards[row].cpu() * torch.tensor([width, height])
        return functional.perspective(image, corners, moved.round().int().tolist(), interpolation=BILINEAR)

    return _each(tilt, x)


def elastic(x: Tensor, draws: Draws, strength: float, sigma: float) -> Tensor:
    """Displace pixels by smoothed noise; `strength` is ElasticTransform's alpha, in pixels for a side of 32."""
    height, width = x.shape[2:]
    noise = filters.gaussian_blur(draws.uniform(2, height, width, low=-1.0), sigma)
    offsets = strength * min(height, width) / 32 * noise.permute(0, 2, 3, 1) * 2 / x.new_tensor([width, height])

    def displace(image: Tensor, row: int) -> Tensor:
        return functional.elastic(image, offsets[row : row + 1], interpolation=BILINEAR)

    return _each(displace, x)


def posterize(x: Tensor, draws: Draws, bits: int) -> Tensor:
    """Keep the highest `bits` bits of each 8-bit value."""
    return as_floats(functional.posterize((x * 255).round().byte(), bits)).to(x.dtype)


def autocontrast(x: Tensor, draws: Draws) -> Tensor:
    """Stretch each channel to the range [0, 1]."""
    return _planes(functional.autocontrast, x)


def sharpness(x: Tensor, draws: Draws, factor: float) -> Tensor:
    """Sharpen by unsharp masking, which torchvision supports for one or three channels."""
    return _planes(lambda planes: functional.adjust_sharpness(planes, factor), x)


def grayscale(x: Tensor, draws: Draws, amount: float) -> Tensor:
    """Move each pixel towards its luminance by the fraction `amount`."""
    return torch.lerp(x, filters.luminance(x).expand_as(x), amount)


def _each(change: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
    """Apply a change with separate parameters to each image; torchvision takes one set of parameters per call."""
    return torch.stack([change(image, row) for row, image in enumerate(x)])


def _planes(change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return change(x) if x.shape[1] in (1, 3) else change(x.flatten(0, 1).unsqueeze(1)).view_as(x)
