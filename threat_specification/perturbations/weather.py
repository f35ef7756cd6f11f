"""The weather corruptions of Hendrycks and Dietterich (2019).

Their frost uses photographs of ice that we may not distribute; here frost is generated instead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threat_specification.perturbations import filters
from threat_specification.perturbations.draws import Draws

WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)
ICE = (0.82, 0.92, 1.0)
EMBOSS = ((-2.0, -1.0, 0.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 2.0))
DROP_DEPTH = 20  # distance in pixels from a drop's edge at which it has its full depth


def fog(x: Tensor, draws: Draws, amount: float, decay: float) -> Tensor:
    """Add a fractal veil, then rescale so that the image's largest value remains the limit."""
    brightest = x.flatten(1).amax(1).view(-1, 1, 1, 1)
    veiled = x + amount * filters.fractal(x, draws, decay).unsqueeze(1)
    return veiled * brightest / (brightest + amount)


def frost(x: Tensor, draws: Draws, keep: float, amount: float) -> Tensor:
    """keep * image + amount * ice. The ice is bluish white: needles (ridges of a fractal) over a haze."""
    haze, ridges = (filters.fractal(x, draws, decay) for decay in (2.0, 1.4))
    ice = (0.6 * (1 - (2 * ridges - 1).abs()) ** 3 + 0.6 * haze).clamp(0, 1).unsqueeze(1)
    return keep * x + amount * ice * _tint(x, ICE)


def snow(
    x: Tensor, draws: Draws, mean: float, scale: float, zoom: float, cut: float, radius: int, sigma: float, keep: float
) -> Tensor:
    """Add motion-blurred flakes, as drawn and rotated by 180 degrees, to a whitened image."""
    flakes = filters.zoom(mean + scale * draws.normal(1, *x.shape[2:]), zoom)
    flakes = torch.where(flakes < cut, 0.0, flakes).clamp(0, 1)
    flakes = filters.motion_blur(flakes, radius, sigma, draws.uniform(low=-3 * math.pi / 4, high=-math.pi / 4))
    whitened = keep * x + (1 - keep) * torch.maximum(x, filters.luminance(x) * 1.5 + 0.5)
    return whitened + flakes + flakes.flip(2, 3)


def water(
    x: Tensor, draws: Draws, mean: float, scale: float, sigma: float, cut: float, strength: float, mud: int
) -> Tensor:
    """Spatter of severities 1 to 3: shining water drops that are deepest in the middle."""
    from scipy.ndimage import distance_transform_edt

    liquid = _liquid(x, draws, mean, scale, sigma, cut)
    wet = (liquid > 0).cpu().numpy()
    depth = torch.stack([torch.from_numpy(distance_transform_edt(drops)) for drops in wet[:, 0]]).unsqueeze(1)
    depth = filters.convolve(depth.to(x).clamp_max(DROP_DEPTH), torch.full((3, 3), 1 / 9))
    shine = filters.convolve(filters.convolve(depth, torch.tensor(EMBOSS)).clamp_min(0), torch.full((3, 3), 1 / 9))
    shine = liquid * shine
    shine = shine / shine.flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return x + strength * shine * _tint(x, WATER)


def mud(
    x: Tensor, draws: Draws, mean: float, scale: float, sigma: float, cut: float, spread: float, mud: int
) -> Tensor:
    """Spatter of severities 4 and 5: opaque brown spots."""
    spots = filters.gaussian_blur((_liquid(x, draws, mean, scale, sigma, cut) > cut).to(x), spread)
    spots = torch.where(spots < 0.8, 0.0, spots)
    return x * (1 - spots) + spots * _tint(x, MUD)


LIQUIDS = {0: water, 1: mud}


def spatter(x: Tensor, draws: Draws, *parameters: float) -> Tensor:
    """Spatter of water or mud, chosen by the last parameter."""
    return LIQUIDS[int(parameters[-1])](x, draws, *parameters)  # type: ignore[arg-type]


def _liquid(x: Tensor, draws: Draws, mean: float, scale: float, sigma: float, cut: float) -> Tensor:
    layer = filters.gaussian_blur(mean + scale * draws.normal(1, *x.shape[2:]), sigma)
    return torch.where(layer < cut, 0.0, layer)


def _tint(x: Tensor, colour: tuple[float, float, float]) -> Tensor:
    """The colour as [1,3,1,1] for colour images, else its luminance as [1,1,1,1]."""
    tint = x.new_tensor(colour).view(1, 3, 1, 1)
    return tint if x.shape[1] == 3 else filters.luminance(tint)
