"""Mean and standard deviation of the training pixels of a data set, by channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datasets.base import Dataset, part_size
from foundations.environment import Environment
from foundations.input_hparams import DatasetHparams

LEVELS = 256


def channel_statistics(
    data: Dataset, dataset: DatasetHparams, environment: Environment
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, for pixels in [0, 1].

    Those of the registry for a published data set; for other files, those of their training images. Each process
    counts the pixel values of its share in whole numbers: the number of processes changes no bit.
    """
    if data.info.num_train and not dataset.own_files:
        return data.info.mean, data.info.std
    mine = torch.arange(len(data.train)).tensor_split(environment.world_size)[environment.rank]
    counts = torch.zeros(data.info.shape[0], LEVELS, dtype=torch.int64)
    parts = mine.split(part_size(data.info.shape))
    for part in environment.progress(parts, "mean and deviation of channels", unit="part"):
        counts += _histogram(data.train.read(part))
    found = [_moments(channel) for channel in environment.all_reduce_sum(counts.numpy()).tolist()]
    return tuple(mean for mean, _ in found), tuple(deviation for _, deviation in found)


def _histogram(images: Tensor) -> Tensor:
    """The number of pixels of each value in each channel of 8-bit images, [C, 256]."""
    return torch.stack([channel.flatten().bincount(minlength=LEVELS).cpu() for channel in images.transpose(0, 1)])


def _moments(counts: list[int]) -> tuple[float, float]:
    """Mean and standard deviation of pixels in [0, 1]; rounded once each, since sums are whole numbers.

    The deviation of a channel that is the same everywhere is 1, since normalisation divides by it.
    """
    number = sum(counts)
    total = sum(value * count for value, count in enumerate(counts))
    squares = sum(value * value * count for value, count in enumerate(counts))
    scale = number * (LEVELS - 1)
    return total / scale, math.sqrt(number * squares - total * total) / scale or 1.0
