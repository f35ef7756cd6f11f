"""Shuffled batches of a split that lives on the device, shared out over processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from datasets.base import Split


@dataclass(frozen=True)
class Batch:
    """This process's part of one global batch.

    images    [b,C,H,W] float32 in [0, 1]; labels [b]; index [b] rows of the split
    partners  [b] rows of the split: another image of the global batch for each
    share     b / global batch size
    """

    split: Split
    index: Tensor
    partners: Tensor
    share: float

    @cached_property
    def images(self) -> Tensor:
        return self.split.pixels(self.index)

    @cached_property
    def labels(self) -> Tensor:
        return self.split.labels[self.index]

    @cached_property
    def partner_images(self) -> Tensor:
        return self.split.pixels(self.partners)

    @property
    def partner_labels(self) -> Tensor:
        return self.split.labels[self.partners]


@dataclass(frozen=True)
class ShuffledBatches:
    """Global batches in an order that depends on seed and epoch alone; each process takes its slice of every one.

    An incomplete last batch is dropped (the next epoch shuffles anew), unless it is the only one.

    rows   of the split to train on (None: all)
    """

    split: Split
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    rows: Tensor | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return max(1, self._count() // self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, counted from 0, from the one numbered `start` on."""
        generator = torch.Generator().manual_seed((self.seed + number) % 2**63)
        order = torch.randperm(self._count(), generator=generator)
        order = (order if self.rows is None else self.rows.cpu()[order]).to(self.split.labels.device)
        for i in range(start, len(self)):
            whole = order[i * self.batch_size : (i + 1) * self.batch_size]
            index, partners = (rows.tensor_split(self.world_size)[self.rank] for rows in (whole, whole.roll(1)))
            yield Batch(self.split, index, partners, len(index) / len(whole))

    def _count(self) -> int:
        return len(self.split) if self.rows is None else len(self.rows)
