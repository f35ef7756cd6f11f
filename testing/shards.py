"""Evaluation in fixed shards of consecutive examples, distributed over processes and saved to disk one by one.

The size of a shard does not depend on the number of processes: rank r of W takes shards r, r + W, ... Every example
counts once, and the results are bit-identical for any number of processes, interrupted or not.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy
import torch
from torch import Tensor

from foundations.environment import Environment
from foundations.errors import RunError
from foundations.files import write_npz
from foundations.memory import is_out_of_memory
from threat_specification.attacks.base import predicted

Arrays = dict[str, numpy.ndarray]
Session = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Shard:
    """Consecutive examples: images [n,C,H,W] float32 in [0, 1], labels [n], index [n] in the data set."""

    number: int
    images: Tensor
    labels: Tensor
    index: Tensor


class Evaluation(Protocol):
    """A measurement of every example.

    columns   name -> NumPy type, or (type, length) of a row, of each array that it returns
    pictures  names of the images [n,C,H,W] that it returns in addition
    """

    @property
    def columns(self) -> dict[str, str | tuple[str, int]]: ...

    @property
    def pictures(self) -> Sequence[str]: ...

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        """The rows of those arrays, and the images, for one shard."""


@dataclass
class ShardStore:
    """The arrays of finished shards, one file each, so that an interrupted run continues with the next shard.

    pictures_of   number of shards, from the first, whose pictures are kept
    """

    path: Path
    pictures_of: float = 1

    def read(self, number: int, wanted: Sequence[str], pictures: Sequence[str]) -> Arrays | None:
        """The arrays of a shard; None if it must be evaluated (again)."""
        try:
            with numpy.load(self._file(number), allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile):
            return None
        wanted = [*wanted, *(pictures if number < self.pictures_of else ())]
        return arrays if set(wanted) <= arrays.keys() else None

    def write(self, number: int, arrays: Arrays, pictures: Sequence[str]) -> None:
        """Save the arrays of a shard, with its pictures for the first `pictures_of` shards only."""
        left_out = () if number < self.pictures_of else pictures
        write_npz(self._file(number), {name: rows for name, rows in arrays.items() if name not in left_out})

    def pictures(self, number: int) -> Arrays:
        """All saved arrays of a shard, pictures included."""
        with numpy.load(self._file(number), allow_pickle=False) as file:
            return dict(file)

    def _file(self, number: int) -> Path:
        return self.path / f"{number:06d}.npz"


@dataclass
class Memory:
    """Evaluation of shards in parts that fit into GPU memory: after an out-of-memory error the size of parts is halved.

    Every example is still evaluated once, with the same random numbers. But sums over a smaller batch may differ in
    their last bits, and an attack from a library draws new random numbers for each part.

    log           tells the user something
    size          number of examples in a part, at most
    in_lockstep   all processes take part in every pass; the others would not repeat one that failed here
    """

    log: Callable[[str], None]
    size: int
    in_lockstep: bool = False

    def run(self, evaluation: Evaluation, shard: Shard) -> dict[str, Tensor]:
        """Evaluate a shard, in parts where necessary; raises RunError if memory cannot suffice."""
        try:
            parts = [evaluation(part) for part in self._parts(shard)]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            parts = []
        if not parts:  # outside the `except` block, in which the traceback keeps the failed tensors in memory
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
        self.log(f"out of memory: going on with {self.size} images at a time")

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
    session: Session = nullcontext,
) -> Arrays:
    """Arrays of every evaluation, one row per example in the order of `index`, on every process.

    pixels       row numbers -> images in [0, 1]
    labels       [N] of the whole split
    index        [M] the rows to evaluate
    in_lockstep  all processes evaluate every shard together, because a threat is distributed over them
    session      makes a block around the shards of this process, which ends when all processes are at its end
    """
    count = len(index)
    columns = {name: kind for evaluation in evaluations for name, kind in evaluation.columns.items()}
    arrays = {name: _empty(count, kind) for name, kind in columns.items()}
    pictures = [name for evaluation in evaluations for name in evaluation.pictures]
    first, stride = (0, 1) if in_lockstep else (environment.rank, environment.world_size)
    bar = environment.progress(range(first, -(-count // shard_size), stride), "evaluating", unit="shard", hide=not show)
    done = numpy.zeros(count, bool)
    memory = Memory(environment.log, shard_size, in_lockstep)
    for number in _inside(session, bar, environment):
        rows = slice(number * shard_size, min((number + 1) * shard_size, count))
        found = store.read(number, list(columns), pictures) if store else None
        if found and any(found[name].shape != arrays[name][rows].shape for name in columns):
            found = None  # of an earlier version, which measured something else
        # In lockstep all processes follow the primary: another process might see a file that it has just written.
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


def _inside(session: Session, numbers: Iterable[int], environment: Environment) -> Iterator[int]:
    """The numbers of this process's shards, inside a session."""
    with ExitStack() as stack:
        stack.enter_context(session())
        yield from numbers
        with environment.watchdog.waiting():
            stack.close()


def _empty(count: int, kind: str | tuple[str, int]) -> numpy.ndarray:
    return numpy.zeros(count, kind) if isinstance(kind, str) else numpy.zeros((count, kind[1]), kind[0])


def count_correct(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Mask [n] bool of the correctly classified examples; False if the model returns NaN."""
    with torch.no_grad():
        return predicted(model(images)) == labels
