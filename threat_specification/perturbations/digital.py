"""The digital and colour corruptions of Hendrycks and Dietterich (2019)."""

from __future__ import annotations

import io

import numpy
import torch
from PIL import Image
from torch import Tensor

from foundations.pixels import as_floats
from threat_specification.perturbations import filters
from threat_specification.perturbations.draws import Draws


def brightness(x: Tensor, draws: Draws, amount: float) -> Tensor:
    """Raise the value of HSV (the largest channel), with the same hue and saturation; black becomes grey."""
    value = x.amax(1, keepdim=True)
    target = (value + amount).clamp(0, 1)
    return torch.where(value > 0, x * target / value.clamp_min(1e-12), target)


def saturate(x: Tensor, draws: Draws, factor: float, offset: float) -> Tensor:
    """Multiply the saturation of HSV by a factor and add an offset; the hue of grey is red."""

    def change(rgb: Tensor) -> Tensor:
        value, lowest = rgb.amax(1, keepdim=True), rgb.amin(1, keepdim=True)
        saturation = (value - lowest) / value.clamp_min(1e-12)
        wanted = (saturation * factor + offset).clamp(0, 1)
        pure = rgb.new_tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1).expand_as(rgb)
        distance = torch.where(saturation > 0, (value - rgb) / saturation.clamp_min(1e-12), value * pure)
        return value - distance * wanted

    return filters.in_colour(change, x)


def contrast(x: Tensor, draws: Draws, factor: float) -> Tensor:
    """Multiply the deviation from the mean of each channel by a factor."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + factor * (x - mean)


def pixelate(x: Tensor, draws: Draws, factor: float) -> Tensor:
    """Reduce the resolution with Pillow's filter BOX, then enlarge again to the same size, as CIFAR-10-C does."""
    height, width = x.shape[2:]
    small = filters.box_resize(x, max(1, int(height * factor)), max(1, int(width * factor)))
    return filters.box_resize(small, height, width)


def jpeg_compression(x: Tensor, draws: Draws, quality: int) -> Tensor:
    """Compress as JPEG and decode, with Pillow: three channels as colour, otherwise each channel separately."""
    planes = x if x.shape[1] == 3 else x.flatten(0, 1).unsqueeze(1)
    pixels = (planes * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    decoded = numpy.stack([_through_jpeg(image.squeeze(2) if len(x[0]) != 3 else image, quality) for image in pixels])
    images = torch.from_numpy(decoded).view(len(planes), *x.shape[2:], -1).permute(0, 3, 1, 2).reshape(x.shape)
    return as_floats(images.to(x.device)).to(x.dtype)


def _through_jpeg(image: numpy.ndarray, quality: int) -> numpy.ndarray:
    """Encode and decode [H,W] or [H,W,3] uint8."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return numpy.asarray(Image.open(buffer))


def elastic_transform(x: Tensor, draws: Draws, strength: float, smoothness: float, shift: float) -> Tensor:
    """Apply an affine map that moves three points at random, then a smooth random displacement.

    All parameters are fractions of the shorter side.
    """
    height, width = x.shape[2:]
    side = min(height, width)
    middle = x.new_tensor([width // 2, height // 2])
    arm = side // 3
    corners = middle + arm * x.new_tensor([[1, 1], [1, -1], [-1, -1]])
    moved = corners + draws.uniform(3, 2, low=-shift * side, high=shift * side)
    # The inverse map, from a pixel of the result to its source: it maps the moved points back to the corners.
    homogeneous = torch.cat((moved, torch.ones_like(moved[..., :1])), dim=2)
    back = torch.linalg.lstsq(homogeneous, corners.expand_as(moved)).solution
    rows, columns = filters.pixel_grid(x)
    here = torch.stack((columns, rows, torch.ones_like(rows)), dim=-1).view(1, -1, 3)
    there = (here @ back).view(len(x), height, width, 2)
    x = filters.sample(x, there[..., 1], there[..., 0], "reflection")
    offsets = draws.uniform(2, height, width, low=-1.0)
    if smoothness > 0:
        offsets = filters.reflected_blur(offsets, smoothness * side, truncate=3.0)
    offsets = strength * side * offsets
    return filters.sample(x, rows + offsets[:, 1], columns + offsets[:, 0], "reflection")
