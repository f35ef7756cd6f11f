"""A data loader: shuffled batches of a split, distributed over processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from datasets.base import Examples, Split
from foundations.pixels import as_floats


@dataclass(frozen=True)
class LoadedBatch:
    """This process's part of one global batch.

    images    [b,C,H,W] float32 in [0, 1]
    labels    [b]
    index     [b] rows of the split
    partners  [b] rows of the split, the one before each image in the global batch (cyclically)
    share     b / global batch size
    """

    split: Examples
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

    def rows(self) -> tuple[Tensor, Tensor]:
        """All rows needed, each once, [m]; and the positions in them of the images, then of the partners, [2b]."""
        return torch.cat([self.index, self.partners]).unique(return_inverse=True)


@dataclass(frozen=True)
class ReadBatch(LoadedBatch):
    """A batch with images read in advance: `read` [m,C,H,W] uint8, in the order of `rows()`."""

    read: Tensor

    @cached_property
    def images(self) -> Tensor:
        return as_floats(self.read[self.rows()[1][: len(self.index)]])

    @cached_property
    def partner_images(self) -> Tensor:
        return as_floats(self.read[self.rows()[1][len(self.index) :]])


@dataclass(frozen=True)
class ShuffledBatches:
    """Global batches in an order that depends only on seed and epoch; each process takes its slice of every batch.

    An incomplete last batch is dropped, unless it is the only one. Every epoch is shuffled differently.

    rows         rows of the split to train on (None: all)
    num_workers  worker processes that decode image files
    """

    split: Examples
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    rows: Tensor | None = None
    num_workers: int = 0

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return max(1, self._count() // self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[LoadedBatch]:
        """The batches of epoch `number`, from batch `start` on; both are counted from 0."""
        if isinstance(self.split, Split):
            return self._planned(number, start)
        return self._read(list(self._planned(number, start)))

    def _planned(self, number: int, start: int) -> Iterator[LoadedBatch]:
        generator = torch.Generator().manual_seed((self.seed + number) % 2**63)
        order = torch.randperm(self._count(), generator=generator)
        order = (order if self.rows is None else self.rows.cpu()[order]).to(self.split.labels.device)
        for i in range(start, len(self)):
            whole = order[i * self.batch_size : (i + 1) * self.batch_size]
            index, partners = (rows.tensor_split(self.world_size)[self.rank] for rows in (whole, whole.roll(1)))
            yield LoadedBatch(self.split, index, partners, len(index) / len(whole))

    def _read(self, batches: list[LoadedBatch]) -> Iterator[LoadedBatch]:
        from datasets.folders import FolderSplit
        from datasets.read_ahead import read_ahead

        assert isinstance(self.split, FolderSplit)
        images = read_ahead(self.split, (batch.rows()[0] for batch in batches), self.num_workers)
        for batch, read in zip(batches, images, strict=True):
            yield ReadBatch(batch.split, batch.index, batch.partners, batch.share, read)

    def _count(self) -> int:
        return len(self.split) if self.rows is None else len(self.rows)
