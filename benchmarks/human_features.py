"""Images [n,784] as the measures of study_human see them: features, small deformations, and rules that learn.

Everything here knows only the images it is given; nothing was fitted to answers of people.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from scipy.ndimage import label as components
from torch import Tensor

SIDE, PIXELS = 28, 784
Feature = Callable[[Tensor], Tensor]


def square(x: Tensor) -> Tensor:
    """[n,784] -> [n,1,28,28]."""
    return x.reshape(-1, 1, SIDE, SIDE)


def blurred(x: Tensor, sigma: float = 1.0) -> Tensor:
    offsets = torch.arange(-3.0, 4.0)
    window = torch.exp(-0.5 * (offsets / sigma) ** 2)
    window = window / window.sum()
    images = F.pad(square(x), (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(images, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1)).flatten(1)


def centre_surround(x: Tensor) -> Tensor:
    """Difference of two blurs: linear, and nearly blind to brightness and to slow changes of it."""
    return blurred(x, 0.7) - blurred(x, 2.5)


def bent(x: Tensor) -> Tensor:
    """A concave map of pixels, (x + 0.02)^0.5: a step from black is seen more than one below white."""
    return (x.clamp_min(0) + 0.02).sqrt()


def local_contrast(x: Tensor) -> Tensor:
    """(blur 0.7 - mean) / (deviation + 0.1), mean and deviation in a Gaussian window of sigma 3."""
    fine, mean = blurred(x, 0.7), blurred(x, 3.0)
    deviation = (blurred(fine * fine, 3.0) - blurred(fine, 3.0).square()).clamp_min(0).sqrt()
    return (fine - mean) / (deviation + 0.1)


def oriented(x: Tensor) -> Tensor:
    """Histograms of oriented gradients: 8 signed orientations in cells of 4 pixels, divided by the energy nearby."""
    images = F.pad(square(blurred(x, 1.2)), (1, 1, 1, 1), mode="replicate")
    across = (images[..., 1:-1, 2:] - images[..., 1:-1, :-2]) / 2
    down = (images[..., 2:, 1:-1] - images[..., :-2, 1:-1]) / 2
    angles = torch.arange(8) * (torch.pi / 4)
    along = across * angles.cos().view(1, 8, 1, 1) + down * angles.sin().view(1, 8, 1, 1)
    cells = F.avg_pool2d(along.clamp_min(0).square(), 4).sqrt()
    energy = F.avg_pool2d(cells.square().sum(1, keepdim=True), 3, 1, 1).sqrt()
    return (cells / (energy + 0.05)).flatten(1)


def raw(x: Tensor) -> Tensor:
    return x


def tangents(x: Tensor) -> Tensor:
    """Orthonormal [n,784,k] of small deformations: two shifts, two scales, two shears, thickness."""
    images = F.pad(square(blurred(x, 0.9)), (1, 1, 1, 1), mode="replicate")
    g_x = ((images[..., 1:-1, 2:] - images[..., 1:-1, :-2]) / 2).flatten(1)
    g_y = ((images[..., 2:, 1:-1] - images[..., :-2, 1:-1]) / 2).flatten(1)
    place = torch.linspace(-1, 1, SIDE)
    across, down = place.repeat(SIDE), place.repeat_interleave(SIDE)
    thickness = (g_x.square() + g_y.square()).sqrt()
    rows = [g_x, g_y, across * g_x, down * g_x, across * g_y, down * g_y, thickness]
    return torch.linalg.qr(torch.stack(rows, 2) + 1e-6 * torch.randn(PIXELS, len(rows), generator=seeded(0))).Q


def safe_directions(x: Tensor) -> Tensor:
    """[9,784] of length 1: brightness, contrast, shifts, scales, shears and blur of x [784], as PD-T has them."""
    images = F.pad(square(blurred(x, 0.7)), (1, 1, 1, 1), mode="replicate")
    g_x = ((images[..., 1:-1, 2:] - images[..., 1:-1, :-2]) / 2).flatten()
    g_y = ((images[..., 2:, 1:-1] - images[..., :-2, 1:-1]) / 2).flatten()
    place = torch.linspace(-1, 1, SIDE)
    across, down = place.repeat(SIDE), place.repeat_interleave(SIDE)
    rows = [torch.ones(PIXELS), x - x.mean(), g_x, g_y, across * g_x, down * g_x, across * g_y, down * g_y]
    return F.normalize(torch.stack([*rows, blurred(x).flatten() - x]), dim=1)


def freed(t: Tensor, u: Tensor, weight: float = 0.1) -> Tensor:
    """Rows of u [J,D] in the metric (I + T^T T / weight)^-1, in which the directions t [k,D] are nearly free."""
    return u - torch.linalg.solve(weight * torch.eye(len(t)) + t @ t.T, t @ u.T).T @ t


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_distortion(x: Tensor, others: Tensor, reach: int = 2) -> Tensor:
    """[n,m] image distortion model (Keysers et al. 2007) between x [n,784] and others [n,m,784].

    Each pixel of x, with the gradients of its 3 x 3 surroundings, goes to the best place within `reach` pixels.
    """
    n, m = others.shape[:2]
    mine, theirs = sobel(x).view(n, 1, 2, SIDE, SIDE), sobel(others.flatten(0, 1)).view(n, m, 2, SIDE, SIDE)
    theirs = F.pad(theirs, (reach,) * 4)
    best = torch.full((n, m, SIDE, SIDE), torch.inf)
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            apart = (mine - theirs[..., down : down + SIDE, right : right + SIDE]).square().sum(2)
            best = torch.minimum(best, F.avg_pool2d(apart, 3, 1, 1))
    return best.sum((2, 3)).sqrt()


def sobel(x: Tensor) -> Tensor:
    """[n,2,28,28] horizontal and vertical gradients."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    return F.conv2d(square(x), torch.stack([kernel, kernel.T]).unsqueeze(1), padding=1)


def warped(x: Tensor, others: Tensor, reach: int = 2) -> Tensor:
    """Others [m,784], every pixel taken from the place within `reach` whose surroundings fit x [784] best."""
    m = len(others)
    mine, theirs = square(x), F.pad(square(others), (reach,) * 4)
    best, taken = torch.full((m, 1, SIDE, SIDE), torch.inf), torch.zeros(m, 1, SIDE, SIDE)
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            moved = theirs[..., down : down + SIDE, right : right + SIDE]
            cost = F.avg_pool2d((mine - moved).square(), 5, 1, 2)
            taken, best = torch.where(cost < best, moved, taken), torch.minimum(cost, best)
    return taken.flatten(1)


def holes_and_parts(image: numpy.ndarray, level: float) -> tuple[int, int]:
    """Connected parts of at least four pixels of the ink [28,28] above a level, and of the paper inside it."""
    ink = image > level
    parts, number = components(ink, numpy.ones((3, 3)))
    holes, found = components(numpy.pad(~ink, 1, constant_values=True))
    parts_kept = (numpy.bincount(parts.ravel(), minlength=number + 1)[1:] >= 4).sum()
    holes_kept = (numpy.bincount(holes.ravel(), minlength=found + 1)[1:] >= 2).sum() - 1
    return int(parts_kept), int(holes_kept)


def far_ink(before: numpy.ndarray, after: numpy.ndarray, level: float) -> float:
    """Ink above a level that came or went, [28,28] each: the sum of its distances from ink that was, or is, there."""
    one, two = before > level, after > level
    if not one.any() or not two.any():
        return float(SIDE)
    came, went = distance_transform_edt(~one)[two], distance_transform_edt(~two)[one]
    return float((came - 1).clip(0).sum() / one.sum() + (went - 1).clip(0).sum() / one.sum())
