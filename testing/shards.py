"""Evaluation in fixed shards of consecutive examples, shared out over processes and kept on disk one by one.

The size of a shard does not depend on the number of processes: rank r of W takes shards r, r + W, ..., every
example counts once, and 1, 2 or 3 processes, interrupted or not, give the same bits.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy
import torch
from torch import Tensor

from foundations.environment import Environment
from foundations.errors import RunError
from foundations.files import write_npz
from threat_specification.attacks.base import predicted

Arrays = dict[str, numpy.ndarray]


@dataclass(frozen=True)
class Shard:
    """Consecutive examples: images [n,C,H,W] float32 in [0, 1], labels [n], index [n] in the data set."""

    number: int
    images: Tensor
    labels: Tensor
    index: Tensor


class Evaluation(Protocol):
    """Something measured of every example.

    columns   name -> NumPy type, or (type, length) of a row, of each array it fills
    pictures  names of the images [n,C,H,W] that it gives beside them
    """

    @property
    def columns(self) -> dict[str, str | tuple[str, int]]: ...

    @property
    def pictures(self) -> Sequence[str]: ...

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        """Rows of those arrays and images for one shard."""


@dataclass
class ShardStore:
    """What finished shards gave, a file each: an interrupted run goes on with the next one.

    pictures_of   how many shards keep their pictures, from the first on
    """

    path: Path
    pictures_of: float = 1

    def read(self, number: int, wanted: Sequence[str], pictures: Sequence[str]) -> Arrays | None:
        """The arrays of a shard, None when it is to be done (again)."""
        try:
            with numpy.load(self._file(number), allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile):
            return None
        wanted = [*wanted, *(pictures if number < self.pictures_of else ())]
        return arrays if set(wanted) <= arrays.keys() else None

    def write(self, number: int, arrays: Arrays, pictures: Sequence[str]) -> None:
        """Keep a shard."""
        left_out = () if number < self.pictures_of else pictures
        write_npz(self._file(number), {name: rows for name, rows in arrays.items() if name not in left_out})

    def pictures(self, number: int) -> Arrays:
        """Everything kept of a shard."""
        with numpy.load(self._file(number), allow_pickle=False) as file:
            return dict(file)

    def _file(self, number: int) -> Path:
        return self.path / f"{number:06d}.npz"


@dataclass
class Memory:
    """Evaluates shards in parts that fit into a GPU's memory: where one did not, halves are tried from then on.

    Every example counts as before, and its random numbers are its own; sums over a smaller batch may differ in
    their last bits, and an attack of a library draws anew for each part.
    """

    environment: Environment
    size: int
    in_lockstep: bool = False  # other processes take part in every pass, and would not know of a second result

    def run(self, evaluation: Evaluation, shard: Shard) -> dict[str, Tensor]:
        """What the evaluation says of the shard."""
        try:
            parts = [evaluation(part) for part in self._parts(shard)]
        except torch.OutOfMemoryError:
            parts = []
        if not parts:  # outside the handler, whose traceback keeps the tensors of the result
            self._halve()
            return self.run(evaluation, shard)
        return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _halve(self) -> None:
        if self.in_lockstep:
            raise RunError("out of memory; use a smaller --shard_size")
        if self.size == 1:
            raise RunError("out of memory with a single image; use a device with more memory, or --device=cpu")
        self.size = -(-self.size // 2)
        torch.cuda.empty_cache()
        self.environment.log(f"out of memory: going on with {self.size} images at a time")

    def _parts(self, shard: Shard) -> list[Shard]:
        if len(shard.labels) <= self.size:
            return [shard]
        fields = zip(
            shard.images.split(self.size), shard.labels.split(self.size), shard.index.split(self.size), strict=True
        )
        return [Shard(shard.number, *part) for part in fields]


def evaluate_in_shards(
    pixels: Callable[[Tensor], Tensor],
    labels: Tensor,
    index: Tensor,
    shard_size: int,
    evaluations: Sequence[Evaluation],
    environment: Environment,
    store: ShardStore | None = None,
    show: bool = True,
    in_lockstep: bool = False,
) -> Arrays:
    """Arrays of every evaluation, one row per example in the order of `index`, on every process.

    pixels       row numbers -> images in [0, 1];  labels [N] of the whole split;  index [M] the rows to evaluate
    in_lockstep  all processes evaluate every shard together, because a threat is spread over them
    """
    count = len(index)
    columns = {name: kind for evaluation in evaluations for name, kind in evaluation.columns.items()}
    arrays = {name: _empty(count, kind) for name, kind in columns.items()}
    pictures = [name for evaluation in evaluations for name in evaluation.pictures]
    first, stride = (0, 1) if in_lockstep else (environment.rank, environment.world_size)
    bar = environment.progress(range(first, -(-count // shard_size), stride), "evaluating", unit="shard", hide=not show)
    done = numpy.zeros(count, bool)
    memory = Memory(environment, shard_size, in_lockstep)
    for number in bar:
        rows = slice(number * shard_size, min((number + 1) * shard_size, count))
        found = store.read(number, list(columns), pictures) if store else None
        # In lockstep the primary's answer counts: another process may see a file that was written a moment ago.
        if not (environment.broadcast(found is not None) if in_lockstep else found is not None):
            shard = Shard(number, pixels(index[rows]), labels[index[rows]], index[rows])
            found = {
                name: values.cpu().numpy()
                for evaluation in evaluations
                for name, values in memory.run(evaluation, shard).items()
            }
            if store and (environment.is_primary or not in_lockstep):
                store.write(number, found, pictures)
        assert found is not None
        for name in columns:
            arrays[name][rows] = found[name]
        done[rows] = True
        bar.set_postfix({name: f"{arrays[name][done].mean():.3f}" for name in columns if name.endswith("_correct")})
    return arrays if in_lockstep else {name: environment.all_reduce_sum(array) for name, array in arrays.items()}


def _empty(count: int, kind: str | tuple[str, int]) -> numpy.ndarray:
    return numpy.zeros(count, kind) if isinstance(kind, str) else numpy.zeros((count, kind[1]), kind[0])


def count_correct(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """[n] bool: which examples the model gets right; none to which it answers NaN."""
    with torch.no_grad():
        return predicted(model(images)) == labels
