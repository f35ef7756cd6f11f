"""Images made from a seed: a coloured pattern for each class, under noise."""

from __future__ import annotations

from pathlib import Path

import torch

from datasets.base import Dataset, Split
from datasets.info import DatasetInfo
from foundations.desc import derive_seed
from foundations.hparams import DatasetHparams

CELLS = 4  # a pattern is this many cells wide and high
NOISE = 0.15
PART = 1000  # images made at a time


def load_synthetic(dataset: DatasetHparams, info: DatasetInfo, data_dir: Path | None) -> Dataset:
    """Every class has a pattern of CELLS x CELLS colours; an image is that pattern, smooth, with Gaussian noise."""
    generator = torch.Generator().manual_seed(derive_seed(dataset.data_seed, 1, "synthetic"))
    patterns = torch.nn.functional.interpolate(
        torch.rand(info.num_classes, info.shape[0], CELLS, CELLS, generator=generator), info.shape[1:], mode="bilinear"
    )

    def split(count: int) -> Split:
        labels = torch.arange(count) % info.num_classes
        labels = labels[torch.randperm(count, generator=generator)]
        images = torch.empty(count, *info.shape, dtype=torch.uint8)
        for rows in torch.arange(count).split(PART):
            noise = NOISE * torch.randn(len(rows), *info.shape, generator=generator)
            images[rows] = ((patterns[labels[rows]] + noise).clamp(0, 1) * 255).round().byte()
        return Split(images, labels)

    return Dataset(dataset.dataset_name, info, split(dataset.synthetic_train), split(dataset.synthetic_test))
