"""Synthetic images, generated from a seed: one coloured pattern for each class, plus noise."""

from __future__ import annotations

from pathlib import Path

import torch

from datasets.base import Dataset, Split
from datasets.info import DatasetInfo
from foundations.desc import derive_seed
from foundations.input_hparams import DatasetHparams

CELLS = 4  # width and height of a pattern in cells
NOISE = 0.15  # standard deviation
PART = 1000  # images generated at a time


def load_synthetic(dataset: DatasetHparams, info: DatasetInfo, data_dir: Path | None) -> Dataset:
    """Generate the data set. An image is the pattern of its class, with Gaussian noise.

    A pattern has CELLS x CELLS random colours, interpolated bilinearly to the shape of the images.
    """
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
