"""Starting points of the adversary in training: a random point of its set, or its last perturbation of the image.

Starting from the perturbation of the epoch before accumulates the steps of all epochs, so that few steps in each epoch
make a strong adversary (Zheng et al. 2020, arXiv 1912.11969).
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

BYTES = 2  # bytes of a value (float16)
SHARED = 2**26  # bytes in one all-reduce, at most


class Starts(Protocol):
    """Starting points of one adversary, which calls `begin` before its first step and `end` after its last step.

    fresh   an entry of the attacks' STARTS: the starting point for images without a stored perturbation
    """

    @property
    def fresh(self) -> str: ...

    def begin(self, batch: Batch, fresh: Tensor) -> Tensor:
        """The perturbations to start from, [b,C,H,W]; fresh: new starting points, made by the entry `fresh`."""
        ...

    def end(self, batch: Batch, delta: Tensor) -> None:
        """Store the final perturbations, which `begin` returns only after the current optimizer step."""
        ...


@dataclass(frozen=True)
class RandomStarts:
    """Starts that are always new points of the set; nothing is stored."""

    fresh: str = "scaled_noise"

    def begin(self, batch: Batch, fresh: Tensor) -> Tensor:
        return fresh

    def end(self, batch: Batch, delta: Tensor) -> None:
        pass


class LastPerturbations(nn.Module):
    """Starts at the adversary's last perturbation of each image; at a random point if there is none yet.

    It is a module so that its buffers can be saved in a checkpoint.

    values   [N,C,H,W] float16, one perturbation for each row of the data set, in the frame before crop and flip
    known    [N] bool, True for rows with a stored perturbation
    """

    fresh = "scaled_noise"
    values: Tensor
    known: Tensor

    def __init__(self, num_images: int, shape: tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(num_images, *shape, dtype=torch.float16, device=device))
        self.register_buffer("known", torch.zeros(num_images, dtype=torch.bool, device=device))
        self._own = torch.zeros_like(self.known)  # rows changed by this process since the last `share`
        self._ended: list[tuple[Tensor, Tensor]] = []  # index and perturbations since the last `commit`

    def begin(self, batch: Batch, fresh: Tensor) -> Tensor:
        last = batch.move(self.values[batch.index].float(), batch.index, batch.draw)
        return torch.where(self.known[batch.index].reshape(-1, 1, 1, 1), last, fresh)

    def end(self, batch: Batch, delta: Tensor) -> None:
        self._ended.append((batch.index, batch.move.undo(delta, batch.index, batch.draw).half()))

    def commit(self) -> None:
        """Store the final perturbations. Call it after the optimizer step.

        If a step runs out of memory, its retry then starts from the same perturbations as the first attempt.
        """
        for index, delta in self._ended:
            self.values[index] = delta
            self.known[index] = self._own[index] = True
        self._ended.clear()

    def share(self) -> None:
        """Give all processes the same state. A collective operation.

        It is needed because an image belongs to one process in one epoch, and may belong to another in the next. The
        sums of the all-reduce are exact: if one process has a value, the others add zeros.
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
    """One LastPerturbations for each of `count` adversaries; raises UsageError if they exceed the device's memory."""
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
    """One RandomStarts for each of `count` adversaries."""
    return [RandomStarts(fresh) for _ in range(count)]


# --adv_start -> (number of adversaries, number of training images, their shape, device) -> a Starts for each adversary
STARTS: dict[str, Callable[[int, int, tuple[int, ...], torch.device], Sequence[Starts]]] = {
    "random": random_starts,
    "corner": partial(random_starts, fresh="corner"),
    "last": last_perturbations,
}


def _memory(device: torch.device) -> int:
    """Total memory of a GPU in bytes; for the CPU, total memory divided by the number of processes on the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // processes
