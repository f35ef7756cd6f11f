"""Small batches for tests of training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from threat_specification import AnchorSet

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = 0.1 + 0.8 * torch.rand(6, 1, 4, 4, generator=GENERATOR)
LABELS = torch.arange(6) % 3
ANCHORS = AnchorSet(torch.rand(12, 1, 4, 4, generator=GENERATOR), torch.arange(12) % 3)


@dataclass
class Whole:
    """A batch on one process; partners are the images before."""

    images: Tensor = IMAGES
    labels: Tensor = LABELS
    index: Tensor = torch.arange(6)
    share: float = 1.0

    @property
    def partners(self) -> Tensor:
        return (self.index - 1) % 6

    @property
    def partner_images(self) -> Tensor:
        return IMAGES[self.partners]

    @property
    def partner_labels(self) -> Tensor:
        return LABELS[self.partners]


def some(rows: Tensor) -> Whole:
    """A part of that batch."""
    return Whole(IMAGES[rows], LABELS[rows], rows, len(rows) / 6)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
