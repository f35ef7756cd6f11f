"""Evaluation in fixed shards of consecutive examples, shared out over processes.

The size of a shard does not depend on the number of processes: rank r of W takes shards r, r + W, ..., every
example counts once, and 1, 2 or 3 processes give the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy
import torch
from torch import Tensor

from foundations.environment import Environment


@dataclass(frozen=True)
class Shard:
    """Consecutive examples: images [n,C,H,W] float32 in [0, 1], labels [n], index [n] in the data set."""

    number: int
    images: Tensor
    labels: Tensor
    index: Tensor


class Evaluation(Protocol):
    """Something measured of every example."""

    @property
    def columns(self) -> dict[str, str]:
        """Name and NumPy type of each array it fills."""

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        """The rows [n] of those arrays for one shard."""


def evaluate_in_shards(
    pixels: Callable[[Tensor], Tensor],
    labels: Tensor,
    index: Tensor,
    shard_size: int,
    evaluations: Sequence[Evaluation],
    environment: Environment,
    show: bool = True,
) -> dict[str, numpy.ndarray]:
    """Arrays of every evaluation, one row per example in the order of `index`, on every process.

    pixels   row numbers -> images in [0, 1];  labels [N] of the whole split;  index [M] the rows to evaluate
    """
    count = len(index)
    arrays = {
        name: numpy.zeros(count, dtype) for evaluation in evaluations for name, dtype in evaluation.columns.items()
    }
    numbers = range(environment.rank, -(-count // shard_size), environment.world_size)
    for number in environment.progress(numbers, "evaluating", unit="shard") if show else numbers:
        rows = slice(number * shard_size, min((number + 1) * shard_size, count))
        shard = Shard(number, pixels(index[rows]), labels[index[rows]], index[rows])
        for evaluation in evaluations:
            for name, values in evaluation(shard).items():
                arrays[name][rows] = values.cpu().numpy()
    return {name: environment.merge(array) for name, array in arrays.items()}


def count_correct(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """[n] bool: which examples the model gets right."""
    with torch.no_grad():
        return model(images).argmax(1) == labels
