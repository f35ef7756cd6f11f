"""Changes towards another meaning: blends with an image of another class, and patches of it."""

from __future__ import annotations

import torch
from torch import Tensor

from threat_specification.perturbations.draws import Draws


def blend(x: Tensor, other: Tensor, amount: float) -> Tensor:
    """Blend x (amount 0) with the other image (amount 1); PD is at least 2 * amount if that image is an anchor."""
    return torch.lerp(x, other, amount)


def patch(x: Tensor, other: Tensor, area: float, draws: Draws) -> Tensor:
    """Replace a rectangle at a random position, with this share of the area and the image's aspect ratio."""
    height, width = x.shape[2:]
    tall, wide = (max(1, round(side * area**0.5)) for side in (height, width))
    top = draws.integers(height - tall + 1).view(-1, 1, 1)
    left = draws.integers(width - wide + 1).view(-1, 1, 1)
    rows = torch.arange(height, device=x.device).view(1, -1, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, -1)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    return torch.where(inside.unsqueeze(1), other, x)


def partners(labels: Tensor, mine: Tensor, draws: Draws) -> Tensor:
    """Draw, for each label of `mine` [B], a row of `labels` [N] with another label, uniformly; returns rows [B].

    `labels` must contain at least two classes.
    """
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels, minlength=int(mine.max()) + 1)
    first = counts.cumsum(0) - counts
    others = len(labels) - counts[mine]
    # Use float64, since float32 cannot represent every row number of a large set.
    place = (draws.uniform().double() * others).long().clamp_max(others - 1)
    return order[place + (place >= first[mine]) * counts[mine]]
