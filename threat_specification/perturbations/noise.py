"""The noises of Hendrycks and Dietterich (2019) for x [B,C,H,W] in [0, 1]; the caller clips the results."""

from __future__ import annotations

import torch
from torch import Tensor

from threat_specification.perturbations.draws import Draws


def gaussian_noise(x: Tensor, draws: Draws, scale: float) -> Tensor:
    """Normal noise with standard deviation `scale`."""
    return x + scale * draws.normal(*x.shape[1:])


def speckle_noise(x: Tensor, draws: Draws, scale: float) -> Tensor:
    """Normal noise with standard deviation `scale` times the pixel."""
    return x + scale * x * draws.normal(*x.shape[1:])


def impulse_noise(x: Tensor, draws: Draws, amount: float) -> Tensor:
    """Set a random share `amount` of the values to 0 or 1."""
    hit, high = draws.uniform(*x.shape[1:]) < amount, draws.uniform(*x.shape[1:]) < 0.5
    return torch.where(hit, high.to(x), x)


def shot_noise(x: Tensor, draws: Draws, photons: float) -> Tensor:
    """A Poisson count with mean x * photons, divided by photons.

    The count is the smallest k at which the distribution function is at least a uniform random number.
    """
    import numpy
    from scipy.special import pdtr, pdtrik

    mean = (x.double() * photons).cpu().numpy()
    level = draws.uniform(*x.shape[1:]).double().cpu().numpy()
    with numpy.errstate(all="ignore"):
        count = numpy.ceil(numpy.nan_to_num(pdtrik(level, mean)))
        below = numpy.maximum(count - 1, 0)
        count = numpy.where((count > 0) & (pdtr(below, mean) >= level), below, count)
    return torch.from_numpy(numpy.where(mean > 0, count, 0)).to(x) / photons
