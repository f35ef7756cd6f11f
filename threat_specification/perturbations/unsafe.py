"""Changes that lead to another meaning: blends with an image of another class, and patches of it."""

from __future__ import annotations

import torch
from torch import Tensor

from threat_specification.perturbations.draws import Draws


def blend(x: Tensor, other: Tensor, amount: float) -> Tensor:
    """x at 0, the other image at 1. PD of this is at least 2 * amount where the other image is an anchor."""
    return torch.lerp(x, other, amount)


def patch(x: Tensor, other: Tensor, area: float, draws: Draws) -> Tensor:
    """A square of this share of the area is taken from the other image, at a random place."""
    height, width = x.shape[2:]
    tall, wide = (max(1, round(side * area**0.5)) for side in (height, width))
    top = draws.integers(height - tall + 1).view(-1, 1, 1)
    left = draws.integers(width - wide + 1).view(-1, 1, 1)
    rows = torch.arange(height, device=x.device).view(1, -1, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, -1)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    return torch.where(inside.unsqueeze(1), other, x)


def partners(labels: Tensor, mine: Tensor, draws: Draws) -> Tensor:
    """For each of `mine` (labels [B]) a row of `labels` [N] with another label, uniformly; [B].

    Needs at least two labels.
    """
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels, minlength=int(mine.max()) + 1)
    first = counts.cumsum(0) - counts
    others = len(labels) - counts[mine]
    # float64: float32 cannot name every row of a large set.
    place = (draws.uniform().double() * others).long().clamp_max(others - 1)
    return order[place + (place >= first[mine]) * counts[mine]]
