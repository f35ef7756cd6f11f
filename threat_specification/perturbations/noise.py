"""The noises of Hendrycks and Dietterich (2019) for x [B,C,H,W] in [0, 1]; the caller clips the results."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from threat_specification.perturbations.draws import Draws

if TYPE_CHECKING:  # imported when it is used
    import numpy

    Array = numpy.ndarray[Any, Any]

TABLES = 256  # most different values of pixels for which shot noise makes tables


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

    mean = (x.double() * photons).cpu().numpy()
    level = draws.uniform(*x.shape[1:]).double().cpu().numpy()
    means, kinds = numpy.unique(mean, return_inverse=True)
    counted = _by_tables if len(means) <= TABLES else _one_by_one
    return torch.from_numpy(counted(level, mean, means, kinds.reshape(mean.shape))).to(x) / photons


def _by_tables(level: Array, mean: Array, means: Array, kinds: Array) -> Array:
    """Poisson counts by a table of the distribution function for each of a few means, as 8-bit images have them.

    means, kinds   the different means, and for each pixel the number of its own
    """
    import numpy
    from scipy.special import pdtr

    order = numpy.argsort(kinds.ravel(), kind="stable")
    ends = numpy.bincount(kinds.ravel(), minlength=len(means)).cumsum()
    ordered, count = level.ravel()[order], numpy.zeros(level.size)
    for each, start, end in zip(means, [0, *ends[:-1]], ends, strict=True):
        if each > 0:
            # So long that no uniform number of float32 lies beyond its end.
            table = pdtr(numpy.arange(math.ceil(each + 8 * each**0.5 + 16)), each)
            count[order[start:end]] = table.searchsorted(ordered[start:end])
    return count.reshape(mean.shape)


def _one_by_one(level: Array, mean: Array, means: Array, kinds: Array) -> Array:
    """Poisson counts by the inverse of the distribution function, for each pixel."""
    import numpy
    from scipy.special import pdtr, pdtrik

    with numpy.errstate(all="ignore"):
        count = numpy.ceil(numpy.nan_to_num(pdtrik(level, mean)))
        below = numpy.maximum(count - 1, 0)
        count = numpy.where((count > 0) & (pdtr(below, mean) >= level), below, count)
    return numpy.where(mean > 0, count, 0)
