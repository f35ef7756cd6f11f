"""Trainers over three small batches, and their networks, for tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from tests.training.sources import ANCHORS, Whole, some
from threat_specification import Linf, ProjectedDisplacement
from training.adversaries import PGD
from training.loop import Trainer
from training.objectives import standard
from training.schedule import Schedule

ROWS = (torch.tensor([0, 3]), torch.tensor([1, 2]), torch.tensor([5, 4]))
LINF = PGD("adv", Linf(), 0.05, 0.05, 0.05, 2, seed=1)
PD = PGD("N_adv", ProjectedDisplacement(anchors=ANCHORS), 0.1, 0.2, 0.2, 2, seed=1)


@dataclass
class FixedBatches:
    """Three batches of two, the same every epoch."""

    share: float = 1.0

    def __len__(self) -> int:
        return 3

    def epoch(self, number: int, start: int = 0) -> Iterator[Whole]:
        for rows in ROWS[start:]:
            source = some(rows)
            source.share = self.share
            yield source


def schedule(total: int, warmup: int = 0, shape: str = "constant", milestones: tuple[int, ...] = ()) -> Schedule:
    return Schedule(total, warmup, tuple(milestones), 0.1, shape)


def smooth() -> nn.Module:
    """Without batch normalisation."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def trainer(total: int, lr: float = 0.1, model: nn.Module | None = None, **options: object) -> Trainer:
    model = smooth() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    options = {"objective": standard, "schedule": schedule(total)} | options
    return Trainer(model, optimizer, FixedBatches(), peak_lr=lr, **options)  # type: ignore[arg-type]


class Spare(nn.Module):
    """A network with a layer that it does not use."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.spare = network, nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)
