"""Batches of images in files, decoded by workers while earlier batches are in use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foundations.errors import RunError
from foundations.signals import ignore_signals

if TYPE_CHECKING:
    from datasets.folders import FolderSplit


@dataclass(frozen=True)
class _Rows(torch.utils.data.Dataset):
    split: FolderSplit

    def __getitem__(self, row: int) -> Tensor:
        return self.split.decode(row)


def read_ahead(split: FolderSplit, plans: Iterable[Tensor], num_workers: int) -> Iterator[Tensor]:
    """Images [n,C,H,W] uint8 for each tensor of row numbers, on the split's device.

    num_workers   processes that decode; 0: this one, when it is asked
    """
    on_gpu = split.device.type == "cuda"
    options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": on_gpu}
    # A generator of its own: workers draw a seed, which must not move the global one.
    loader = torch.utils.data.DataLoader(
        _Rows(split),
        batch_sampler=_Plans([plan.tolist() for plan in plans]),
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=leave_to_the_main_process,
        **options,
    )
    try:
        for images in loader:
            yield images.to(split.device, non_blocking=on_gpu)
    except RunError as error:  # a worker's comes with its traceback before the message
        raise RunError(str(error).strip().splitlines()[-1].removeprefix("foundations.errors.RunError: ")) from error


def leave_to_the_main_process(worker: int) -> None:
    """A scheduler asks all processes of a job to end: while the main one finishes its step, it needs its workers."""
    ignore_signals()


class _Plans(torch.utils.data.Sampler):
    def __init__(self, plans: list[list[int]]) -> None:
        self.plans = plans

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)
