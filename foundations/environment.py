"""The environment of a command: processes, device, folders. Created once in `cli/main.py` and passed on."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundations.devices import check_apart, choose_device
from foundations.errors import UsageError
from foundations.program import default_root
from foundations.signals import Stop
from foundations.watchdog import Watchdog

if TYPE_CHECKING:
    import numpy
    import torch

BACKENDS = "cpu:gloo,cuda:nccl"  # of a process group on GPUs

# Evaluation has no collective operation before its end, when a slow rank may be hours behind a fast one. The watchdog
# detects a rank that makes no progress.
PROCESS_GROUP_TIMEOUT = timedelta(hours=24)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Device, ranks and folders of this process; nothing here can change a result.

    stop      the request to end, if any
    watchdog  ends the run if a process makes no progress
    """

    root_dir: Path
    data_dir: Path | None = None
    device_name: str = "cpu"
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    quiet: bool = False
    num_workers: int = 0
    stop: Stop = field(default_factory=Stop, compare=False)
    watchdog: Watchdog = field(default_factory=Watchdog, compare=False)

    @property
    def is_primary(self) -> bool:
        """True on global rank 0, the only process that writes or prints."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        import torch

        return torch.device(self.device_name)

    def log(self, message: str) -> None:
        """Print a message for the user on stderr; only on the primary process, and not if `quiet`."""
        if self.is_primary and not self.quiet:
            print(message, file=sys.stderr, flush=True)

    def progress(
        self, iterable: Any, description: str, total: int | None = None, unit: str = "it", hide: bool = False
    ) -> Any:
        """The iterable with a progress bar if stderr is a terminal; with several processes, every item is a beat."""
        from tqdm import tqdm

        if iterable is not None and self.world_size > 1:
            total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
            iterable = self.watchdog.beating(iterable)
        silent = hide or self.quiet or not self.is_primary or not sys.stderr.isatty()
        return tqdm(iterable, desc=description, total=total, unit=unit, disable=silent, dynamic_ncols=True)

    @contextmanager
    def process_group(self) -> Iterator[None]:
        """Join the other processes for the duration of a block; does nothing with a single process."""
        if self.world_size == 1:
            yield
            return
        import torch
        from torch import distributed

        # Tensors of both kinds are exchanged: what is counted or compared on the CPU stays there.
        backend, device = (BACKENDS, self.device) if self.device.type == "cuda" else ("gloo", None)
        store, rank, world_size = next(distributed.rendezvous("env://"))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # torchrun keeps one store across restarts: without a prefix, processes would look for those of the
            # previous attempt. (With several nodes there is no common prefix: each node counts its own restarts.)
            store = distributed.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        check_apart(store, rank, world_size, self.device_name)
        distributed.init_process_group(
            backend, timeout=PROCESS_GROUP_TIMEOUT, store=store, rank=rank, world_size=world_size, device_id=device
        )
        # The watchdog needs its own connection, since a waiting call blocks all others on the same connection, and its
        # own key prefix, new each time.
        token = torch.tensor([secrets.randbits(62)], device=self.device)
        distributed.broadcast(token, src=0)
        self.watchdog.start(distributed.PrefixStore(f"watch_{int(token)}", store.clone()), rank, world_size)
        try:
            yield
        except BaseException:
            self.watchdog.finish(failed=True)
            raise  # without another collective operation: the other processes may never answer
        self.watchdog.finish(failed=False)
        distributed.destroy_process_group()

    def any_of(self, *values: bool) -> list[bool]:
        """Truth of each value on any of the processes; the same list on all of them.

        The hosts wait for each other, not for their devices: work that has been queued there goes on. So a loop that
        asks after each of its steps ends after the same step everywhere.
        """
        if self.world_size == 1:
            return list(values)
        import torch

        flags = torch.tensor(values, dtype=torch.int64)
        with self.watchdog.waiting():
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in flags.tolist()]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            import torch

            with self.watchdog.waiting():
                torch.distributed.barrier()

    def broadcast(self, value: int) -> int:
        """The primary's whole number, or truth value, on every process, so that all take the same branch."""
        if self.world_size == 1:
            return value
        import torch

        number = torch.tensor([int(value)], dtype=torch.int64)  # not on the device, for which the host would wait
        with self.watchdog.waiting():
            torch.distributed.broadcast(number, src=0)
        return int(number)

    def all_reduce_sum(self, array: numpy.ndarray) -> numpy.ndarray:
        """Element-wise sum over the processes of arrays that are zero wherever another process has the value."""
        if self.world_size == 1:
            return array
        import torch

        wide = {"b": "int64", "i": "int64", "f": "float64"}[array.dtype.kind]
        tensor = torch.from_numpy(array.astype(wide)).to(self.device)
        with self.watchdog.waiting():
            torch.distributed.all_reduce(tensor)
        return tensor.cpu().numpy().astype(array.dtype)

    def all_gather(self, array: numpy.ndarray) -> numpy.ndarray:
        """The arrays of all processes, [W, ...], on every process; all arrays have the same shape."""
        import numpy

        rows = numpy.zeros((self.world_size, *array.shape), array.dtype)
        rows[self.rank] = array
        return self.all_reduce_sum(rows)


def make_environment(
    root_dir: str, data_dir: str, device: str, quiet: bool, num_workers: int, hang_minutes: float = 0.0
) -> Environment:
    """Build the environment from torchrun's variables and from flags, and choose the device."""
    world_size, rank = _whole_number("WORLD_SIZE", 1), _whole_number("RANK", 0)
    local_rank = _whole_number("LOCAL_RANK", 0)
    local_world_size = min(world_size, _whole_number("LOCAL_WORLD_SIZE", local_rank + 1))
    device_name = choose_device(device, local_rank, local_world_size)
    return Environment(
        root_dir=resolve_root(root_dir),
        data_dir=Path(data_dir).expanduser() if data_dir else None,
        device_name=device_name,
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        quiet=quiet,
        num_workers=num_workers if num_workers >= 0 else usual_workers(device_name, local_world_size),
        watchdog=Watchdog(60 * hang_minutes),
    )


MOST_WORKERS = 8


def usual_workers(device_name: str, processes: int) -> int:
    """Processes that decode images for each of the processes on this machine: a GPU waits where there are none."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores // processes) if device_name.startswith("cuda") else 0


_root_of_command: ContextVar[str] = ContextVar("root_of_command", default="")


@contextmanager
def below_root(root_dir: str) -> Iterator[None]:
    """A block in which `resolve_root("")` is this folder, if one is named."""
    token = _root_of_command.set(root_dir or _root_of_command.get())
    try:
        yield
    finally:
        _root_of_command.reset(token)


def resolve_root(root_dir: str) -> Path:
    """The root folder: --root_dir, else NONISOTROPIC_HOME, else `default_root`."""
    return (
        Path(root_dir or _root_of_command.get() or os.environ.get("NONISOTROPIC_HOME", "") or default_root())
        .expanduser()
        .absolute()
    )


def let_threads_sleep() -> None:
    """Let idle OpenMP threads sleep, unless OMP_WAIT_POLICY is set; call before importing torch.

    A thread that busy-waits while the thread it waits for is not scheduled costs 5-17 times the work (small machines,
    several processes). torchrun sets OMP_NUM_THREADS=1 itself.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


KEPT_BYTES = 32 << 20  # the largest threshold that mallopt accepts
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # constants of malloc.h


def keep_memory() -> None:
    """Let the C library, if it is glibc, keep freed memory for the next tensor.

    Otherwise every large tensor is mapped anew, with one page fault per 4 KiB, which often costs more than the
    operation on the tensor itself.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _whole_number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdigit():
        raise UsageError(f"the environment variable {variable} should be a whole number, got '{text}'")
    return int(text)
