"""The interface of all data sets: two splits, whose images are read by row number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from datasets.info import DatasetInfo
from datasets.sampling import rows_by_class, stratified_subset, with_random_labels
from foundations.desc import derive_seed
from foundations.errors import RunError
from foundations.input_hparams import DatasetHparams
from foundations.pixels import as_floats

STATISTICS_ROWS = 2000  # images, approximately, on which the mean and std of a data set in memory are checked
STATISTICS_TOLERANCE = 0.05  # absolute; exceeded by pixels of another scale and by most other data sets


def part_size(shape: tuple[int, int, int]) -> int:
    """The number of images to hold in memory as float32 at a time: at most 64 MiB and 500 images, at least one."""
    return max(1, min(500, 2**24 // math.prod(shape)))


class Examples(Protocol):
    """Labelled images, in memory (`Split`) or read from disk when needed (`datasets.folders.FolderSplit`).

    labels  [N] int64 in [0, K); negative if an image has no label
    """

    @property
    def labels(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def read(self, index: Tensor | slice) -> Tensor:
        """The images of the given rows, [n,C,H,W] uint8; pixel value v stands for v / 255."""

    def pixels(self, index: Tensor | slice) -> Tensor:
        """The images of the given rows, [n,C,H,W] float32 in [0, 1]."""

    def contents(self, index: Tensor) -> Iterator[bytes]:
        """The bytes that an image is stored as, for each of the given rows; two images with equal bytes are equal."""

    def subset(self, rows: Tensor) -> Examples:
        """Only the given rows, in the given order."""

    def relabelled(self, labels: Tensor) -> Examples:
        """The same images with other labels."""

    def to(self, device: torch.device) -> Examples:
        """The same examples, with labels and pixels on a device."""


@dataclass(frozen=True)
class Split:
    """A split in memory, on any device.

    images  [N,C,H,W] uint8; pixel value v stands for v / 255
    labels  [N] int64 in [0, K)
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: Tensor | slice) -> Tensor:
        return self.images[index]

    def pixels(self, index: Tensor | slice) -> Tensor:
        """The images of the given rows, float32 in [0, 1]."""
        return as_floats(self.images[index])

    def contents(self, index: Tensor) -> Iterator[bytes]:
        return (self.images[row].cpu().numpy().tobytes() for row in index.tolist())

    def subset(self, rows: Tensor) -> Split:
        return Split(self.images[rows], self.labels[rows])

    def relabelled(self, labels: Tensor) -> Split:
        return Split(self.images, labels)

    def to(self, device: torch.device) -> Split:
        """The split on a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the facts of the registry; raises RunError if they do not match.

    notes   what the user should know about the files
    """

    name: str
    info: DatasetInfo
    train: Examples
    test: Examples
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for which, split in (("training", self.train), ("test", self.test)):
            if not len(split):
                raise RunError(f"{self.name}: no {which} images")
            images = split.images if isinstance(split, Split) else split.read(torch.arange(1))
            if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self.info.shape:
                raise RunError(
                    f"{self.name}: expected {which} images of 8 bits and shape {self.info.shape}, "
                    f"got {images.dtype} of shape {tuple(images.shape[1:])}"
                )
            if isinstance(split, Split) and len(images) != len(split):
                raise RunError(f"{self.name}: {len(images)} {which} images have {len(split)} labels")
            if int(split.labels.min()) < 0 or int(split.labels.max()) >= self.info.num_classes:
                raise RunError(
                    f"{self.name}: expected {which} labels in [0, {self.info.num_classes}), "
                    f"got {int(split.labels.min())} to {int(split.labels.max())}"
                )
        if len(self.train.labels.unique()) < 2:
            raise RunError(f"{self.name}: expected training images of at least two classes, got one")

    def train_rows(self) -> dict[int, Tensor]:
        """Label -> row numbers of its training images, ascending; reads no image."""
        return rows_by_class(self.train.labels)


def transformed(data: Dataset, dataset: DatasetHparams) -> Dataset:
    """The data set with its training split subsampled and then relabelled, if the flags ask for it.

    The test images do not change.
    """
    train = data.train
    if dataset.subsample_fraction < 1:
        size = max(1, round(dataset.subsample_fraction * len(train)))
        train = train.subset(stratified_subset(train.labels, size, derive_seed(dataset.data_seed, 1, "subsample")))
    if dataset.random_labels_fraction > 0:
        seed = derive_seed(dataset.data_seed, 1, "labels")
        train = train.relabelled(
            with_random_labels(train.labels, dataset.random_labels_fraction, data.info.num_classes, seed)
        )
    return data if train is data.train else dataclasses.replace(data, train=train)


def check_published(data: Dataset) -> None:
    """Raise RunError if a data set does not have the size or the statistics of the published one.

    The statistics are checked only if the training images are in memory.
    """
    info = data.info
    for which, split, expected in (("training", data.train, info.num_train), ("test", data.test, info.num_test)):
        if expected and len(split) != expected:
            raise RunError(
                f"{data.name}: expected {expected:,} {which} images, got {len(split):,}; add --own_files if that is "
                "meant (the files then enter the hash of a run)"
            )
    if not info.num_train or not isinstance(data.train, Split):
        return
    step = max(1, len(data.train) // STATISTICS_ROWS)
    pixels = data.train.pixels(slice(None, None, step))
    for name, found, stated in (("mean", pixels.mean((0, 2, 3)), info.mean), ("std", pixels.std((0, 2, 3)), info.std)):
        if float((found - torch.tensor(stated)).abs().max()) > STATISTICS_TOLERANCE:
            shown = ", ".join(f"{value:.3f}" for value in found.tolist())
            raise RunError(
                f"{data.name}: expected training pixels of {name} {stated}, got ({shown}): another set, or damaged "
                "files; add --own_files if that is meant"
            )
