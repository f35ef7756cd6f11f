"""Reading of image files in advance: workers decode batches while earlier batches are in use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foundations.errors import RunError
from foundations.memory import is_out_of_memory
from foundations.signals import ignore_signals

if TYPE_CHECKING:
    from datasets.folders import FolderSplit


@dataclass(frozen=True)
class _Rows(torch.utils.data.Dataset):
    """Images by row number, without anything on a GPU: a worker process cannot use one.

    split   on the CPU
    """

    split: FolderSplit

    def __getitem__(self, row: int) -> Tensor:
        return self.split.decode(row)


def read_ahead(split: FolderSplit, plans: Iterable[Tensor], num_workers: int) -> Iterator[Tensor]:
    """Images [n,C,H,W] uint8 on the split's device, for each tensor of row numbers.

    num_workers   worker processes that decode; 0: this process decodes each batch when it is needed
    """
    on_gpu = split.device.type == "cuda"
    options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": on_gpu}
    # A separate generator, since the loader draws a seed for the workers, which must not advance the global generator.
    loader = torch.utils.data.DataLoader(
        _Rows(split.to(torch.device("cpu"))),
        batch_sampler=_Plans([plan.tolist() for plan in plans]),
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=leave_to_the_main_process,
        **options,
    )
    batches = iter(loader)
    try:
        for images in batches:
            yield images.to(split.device, non_blocking=on_gpu)
    except RunError as error:  # the message of an error from a worker starts with a traceback, which is removed
        raise RunError(str(error).strip().splitlines()[-1].removeprefix(f"{RunError.__module__}.RunError: ")) from None
    except (RuntimeError, OSError, EOFError) as error:
        if not num_workers or is_out_of_memory(error):  # of this process's device
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(
            f"a process that reads images ended ({reason}); if it was killed for lack of memory, use a smaller "
            "--num_workers or --batch_size"
        ) from error
    finally:
        end_workers(batches)


def end_workers(batches: Iterator[Any]) -> None:
    """End the worker processes of a loader's iterator now, not when it is collected: an error's traceback keeps it.

    The loader ends its workers by SIGTERM, which they ignore, and Python waits for them without limit when it ends.
    """
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()
    for worker in getattr(batches, "_workers", ()):
        if worker.is_alive():
            worker.kill()
        worker.join()


def leave_to_the_main_process(worker: int) -> None:
    """Ignore signals in a worker.

    A scheduler signals all processes of a job to end. The main process still needs its workers to finish its step.
    """
    ignore_signals()


class _Plans(torch.utils.data.Sampler):
    def __init__(self, plans: list[list[int]]) -> None:
        self.plans = plans

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)
