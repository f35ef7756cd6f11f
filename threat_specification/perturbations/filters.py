"""Blurs, warps and noise fields that several perturbations use. Shapes: images [B,C,H,W] float, fields [B,H,W]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from threat_specification.perturbations.draws import Draws

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def gaussian_kernel(sigma: float, radius: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A Gaussian kernel [2 radius + 1] with sum 1."""
    offsets = torch.arange(-radius, radius + 1, dtype=dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return kernel / kernel.sum()


def gaussian_blur(x: Tensor, sigma: float, truncate: float = 4.0) -> Tensor:
    """Separable Gaussian blur with replicated borders; the kernel is cut after `truncate` standard deviations."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return x
    kernel = gaussian_kernel(sigma, radius).to(x)
    flat = x.flatten(0, 1).unsqueeze(1)
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    return flat.view_as(x)


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlation of every channel with one kernel [k,k], k odd, with replicated borders."""
    side = kernel.shape[0] // 2
    padded = F.pad(x, (side, side, side, side), mode="replicate")
    return F.conv2d(padded.flatten(0, 1).unsqueeze(1), kernel.to(x)[None, None]).view_as(x)


def pixel_grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every pixel, each [1,H,W] float."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device, dtype=torch.float32).view(1, -1, 1).expand(1, height, width)
    columns = torch.arange(width, device=x.device, dtype=torch.float32).view(1, 1, -1).expand(1, height, width)
    return rows, columns


def sample(x: Tensor, rows: Tensor, columns: Tensor, padding: str = "border") -> Tensor:
    """The image sampled at real coordinates [B,H,W] with bilinear interpolation; `padding` is that of `grid_sample`."""
    height, width = x.shape[-2:]
    grid = torch.stack(((2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1), dim=-1)
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode=padding, align_corners=False)


def zoom(x: Tensor, factor: float) -> Tensor:
    """The image enlarged around its centre and cut to the same size, as CIFAR-10-C and ImageNet-C do it.

    They cut out whole pixels, enlarge these so that corners stay corners, and trim to the same size; where the sides
    do not come out even, the centre moves by up to a pixel.
    """
    rows, columns = (_zoomed(side, factor).to(x) for side in x.shape[-2:])
    height, width = len(rows), len(columns)
    return sample(x, rows.view(1, -1, 1).expand(1, height, width), columns.view(1, 1, -1).expand(1, height, width))


def _zoomed(side: int, factor: float) -> Tensor:
    """Positions in a line, as real numbers, that the pixels [side] of the enlarged line come from."""
    kept = math.ceil(side / factor)
    enlarged = round(kept * factor)
    first, trimmed = (side - kept) // 2, (enlarged - side) // 2
    step = (kept - 1) / max(enlarged - 1, 1)
    return first + step * (trimmed + torch.arange(side, dtype=torch.float64))


def box_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Images [B,C,H,W] resized with Pillow's filter BOX, but without rounding to 8 bits between.

    A pixel is the mean of those whose centres lie in its own area: where sides shrink by less than a half, of one or
    two; where they grow, the nearest.
    """
    down, across = _box(x.shape[-2], height).to(x), _box(x.shape[-1], width).to(x)
    return down @ x @ across.T


def _box(before: int, after: int) -> Tensor:
    """The weights [after, before] of box_resize along one side."""
    scale = before / after
    centres = scale * (torch.arange(after, dtype=torch.float64) + 0.5)
    away = (torch.arange(before, dtype=torch.float64) + 0.5 - centres.view(-1, 1)) / max(scale, 1.0)
    weights = ((away > -0.5) & (away <= 0.5)).double()
    return weights / weights.sum(1, keepdim=True)


def reflected_blur(x: Tensor, sigma: float, truncate: float) -> Tensor:
    """Separable Gaussian blur [..., H, W] whose borders reflect (d c b a | a b c d | d c b a), as often as needed."""
    down, across = (_reflected(side, sigma, truncate).to(x) for side in x.shape[-2:])
    return down @ x @ across.T


def _reflected(side: int, sigma: float, truncate: float) -> Tensor:
    """The weights [side, side] of reflected_blur along one side."""
    radius = int(truncate * sigma + 0.5)
    weights = gaussian_kernel(sigma, radius, torch.float64) if radius else torch.ones(1, dtype=torch.float64)
    places = (torch.arange(side).view(-1, 1) + torch.arange(-radius, radius + 1)) % (2 * side)
    places = torch.where(places < side, places, 2 * side - 1 - places)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, places, weights.expand(side, -1).contiguous())


def motion_blur(x: Tensor, radius: int, sigma: float, angle: Tensor) -> Tensor:
    """Blur with a one-sided Gaussian of 2 radius + 1 pixels along an angle [B] in radians, like ImageMagick."""
    batch, channels, height, width = x.shape
    weights = torch.exp(-0.5 * (torch.arange(2 * radius + 1) / sigma) ** 2)
    weights = weights / weights.sum()
    rows = torch.arange(height, device=x.device).view(1, -1, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, -1)
    flat, blurred = x.flatten(2), torch.zeros_like(x)
    for step, weight in enumerate(weights.tolist()):
        down = (step * angle.sin()).round().long().view(-1, 1, 1)
        right = (step * angle.cos()).round().long().view(-1, 1, 1)
        source = (rows + down).clamp(0, height - 1) * width + (columns + right).clamp(0, width - 1)
        taken = flat.gather(2, source.view(batch, 1, -1).expand(-1, channels, -1))
        blurred += weight * taken.view_as(x)
    return blurred


def luminance(x: Tensor) -> Tensor:
    """[B,1,H,W]: weighted mean of three channels, or plain mean of any other number of channels."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)


def in_colour(change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a change for three channels; a grey image is converted to colour before and back to grey after.

    Images with another number of channels are returned unchanged.
    """
    if x.shape[1] == 3:
        return change(x)
    if x.shape[1] == 1:
        return luminance(change(x.expand(-1, 3, -1, -1)))
    return x


def fractal(x: Tensor, draws: Draws, decay: float) -> Tensor:
    """A diamond-square field [B,H,W] from 0 to 1; with each halving the amplitude is divided by decay squared."""
    side = 1 << max(1, (max(x.shape[-2:]) - 1).bit_length())
    field = torch.zeros(len(x), side, side, device=x.device)
    step, wibble = side, 100.0

    def random(like: Tensor) -> Tensor:
        return draws.uniform(*like.shape[1:], low=-wibble, high=wibble) * wibble

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        mean = (pairs + pairs.roll(-1, 2)) / 4
        field[:, half::step, half::step] = mean + random(mean)
        centres, corners = field[:, half::step, half::step], field[:, ::step, ::step]
        beside = (centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)) / 4
        below = (centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)) / 4
        field[:, ::step, half::step] = beside + random(beside)
        field[:, half::step, ::step] = below + random(below)
        step, wibble = half, wibble / decay
    lowest, highest = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    field = (field - lowest) / (highest - lowest).clamp_min(1e-12)
    return field[:, : x.shape[2], : x.shape[3]]


def spectral_noise(x: Tensor, draws: Draws, power: Callable[[Tensor], Tensor], fields: int) -> Tensor:
    """Noise [B, fields, H, W] with standard deviation 1, random phases and a given amplitude spectrum.

    `power` maps the distance from frequency 0, in cycles per image, to the amplitude.
    """
    height, width = x.shape[-2:]
    down = torch.fft.fftfreq(height, 1 / height, device=x.device).view(-1, 1)
    right = torch.fft.fftfreq(width, 1 / width, device=x.device).view(1, -1)
    phases = draws.uniform(fields, height, width, high=2 * math.pi)
    noise = torch.fft.ifft2(torch.polar(power((down.square() + right.square()).sqrt()).expand_as(phases), phases)).real
    return noise / noise.std((2, 3), keepdim=True).clamp_min(1e-12)
