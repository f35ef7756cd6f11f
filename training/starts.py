"""Where the adversary of training starts: at a random point of its set, or where it ended on the image an epoch before.

Going on from the last perturbation adds up the steps of all epochs: few steps in each make a strong adversary (Zheng et
al. 2020, arXiv 1912.11969).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from foundations.errors import UsageError
from training.batch import Batch

BYTES = 2  # of a value
SHARED = 2**26  # bytes that are brought to the other processes at a time


class Starts(Protocol):
    """The memory that an adversary asks before its first step, and tells after its last one.

    fresh   an entry of the attacks' STARTS: where it begins on an image that it has not seen
    """

    @property
    def fresh(self) -> str: ...

    def begin(self, batch: Batch, fresh: Tensor) -> Tensor:
        """The perturbations to start from, [b,C,H,W]; fresh: random points of the set."""
        ...

    def end(self, batch: Batch, delta: Tensor) -> None:
        """Where they ended. It counts from the next step on."""
        ...


@dataclass(frozen=True)
class RandomStarts:
    """At a random point, always."""

    fresh: str = "scaled_noise"

    def begin(self, batch: Batch, fresh: Tensor) -> Tensor:
        return fresh

    def end(self, batch: Batch, delta: Tensor) -> None:
        pass


class LastPerturbations(nn.Module):
    """Where the adversary ended on the image an epoch before; at a random point in the first one.

    A module for its buffers: what a checkpoint holds of it.

    values   [N,C,H,W] by row of the data set, float16, in the frame of the image before crop and flip
    known    [N] bool
    """

    fresh = "scaled_noise"
    values: Tensor
    known: Tensor

    def __init__(self, num_images: int, shape: tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(num_images, *shape, dtype=torch.float16, device=device))
        self.register_buffer("known", torch.zeros(num_images, dtype=torch.bool, device=device))
        self._own = torch.zeros_like(self.known)  # by this process, since all shared
        self._ended: list[tuple[Tensor, Tensor]] = []  # since the last commit

    def begin(self, batch: Batch, fresh: Tensor) -> Tensor:
        last = batch.move(self.values[batch.index].float(), batch.index, batch.draw)
        return torch.where(self.known[batch.index].reshape(-1, 1, 1, 1), last, fresh)

    def end(self, batch: Batch, delta: Tensor) -> None:
        self._ended.append((batch.index, batch.move.undo(delta, batch.index, batch.draw).half()))

    def commit(self) -> None:
        """Keep where adversaries ended. After the step: one that ran out of memory is tried again, from the start."""
        for index, delta in self._ended:
            self.values[index] = delta
            self.known[index] = self._own[index] = True
        self._ended.clear()

    def share(self) -> None:
        """Bring all processes to the same state. A collective.

        An image belongs to one process in each epoch, to another one in the next. Sums are exact: where one process
        has a value, the others add zeros.
        """
        if not torch.distributed.is_initialized():
            return
        changed = self._own.to(torch.uint8)
        torch.distributed.all_reduce(changed)
        anywhere = changed > 0
        rows = max(1, SHARED // (BYTES * math.prod(self.values.shape[1:])))
        for kept, own, new in zip(self.values.split(rows), self._own.split(rows), anywhere.split(rows), strict=True):
            values = torch.where(own.reshape(-1, 1, 1, 1), kept, torch.zeros_like(kept))
            torch.distributed.all_reduce(values)
            kept.copy_(torch.where(new.reshape(-1, 1, 1, 1), values, kept))
        self.known |= anywhere
        self._own.zero_()


def last_perturbations(
    count: int, num_images: int, shape: tuple[int, ...], device: torch.device
) -> list[LastPerturbations]:
    """For so many adversaries; refuses what the device could not hold."""
    needed = BYTES * count * num_images * math.prod(shape)
    if needed > _memory(device):
        size = f"{needed / 2**30:.3g} GiB, more than the device has"
        raise UsageError(
            f"--adv_start=last: it keeps a perturbation of every training image, {size}; use --adv_start=random"
        )
    return [LastPerturbations(num_images, shape, device) for _ in range(count)]


def random_starts(
    count: int, num_images: int, shape: tuple[int, ...], device: torch.device, fresh: str = "scaled_noise"
) -> list[RandomStarts]:
    """For so many adversaries."""
    return [RandomStarts(fresh) for _ in range(count)]


# --adv_start -> (number of adversaries, number of training images, their shape, device) -> where each one starts
STARTS: dict[str, Callable[[int, int, tuple[int, ...], torch.device], Sequence[Starts]]] = {
    "random": random_starts,
    "corner": partial(random_starts, fresh="corner"),
    "last": last_perturbations,
}


def _memory(device: torch.device) -> int:
    """Bytes of memory that a device has in all, for each of the processes that share it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // processes
