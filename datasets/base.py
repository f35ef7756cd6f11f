"""A data set in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.registry import DatasetInfo
from foundations.errors import RunError


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    images  [N,C,H,W] uint8; pixel value v stands for v / 255
    labels  [N] int64 in [0, K)
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: Tensor | slice) -> Tensor:
        """Chosen images as float32 in [0, 1]."""
        return self.images[index].float() / 255

    def to(self, device: torch.device) -> Split:
        """The split on a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the facts of the registry; checked when made."""

    name: str
    info: DatasetInfo
    train: Split
    test: Split

    def __post_init__(self) -> None:
        for which, split in (("training", self.train), ("test", self.test)):
            if split.images.dtype != torch.uint8 or tuple(split.images.shape[1:]) != self.info.shape:
                raise RunError(
                    f"{self.name}: expected {which} images of 8 bits and shape {self.info.shape}, "
                    f"got {split.images.dtype} of shape {tuple(split.images.shape[1:])}"
                )
            if len(split.images) != len(split) or not len(split):
                raise RunError(f"{self.name}: {len(split.images)} {which} images have {len(split)} labels")
            if int(split.labels.min()) < 0 or int(split.labels.max()) >= self.info.num_classes:
                raise RunError(
                    f"{self.name}: expected {which} labels in [0, {self.info.num_classes}), "
                    f"got {int(split.labels.min())} to {int(split.labels.max())}"
                )
