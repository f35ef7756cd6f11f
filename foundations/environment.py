"""Where a command runs: processes, device, roots. Made once in `cli/main.py` and passed on."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundations.errors import UsageError
from foundations.signals import Stop
from foundations.watchdog import Watchdog

if TYPE_CHECKING:
    import numpy
    import torch

PROJECT_ROOT = Path(__file__).resolve().parent.parent

# Evaluation has no collective until its very end, where a slow rank may be hours behind a quick one. What stands still
# is noticed by the watch.
PROCESS_GROUP_TIMEOUT = timedelta(hours=24)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Device, ranks and roots of this process; nothing here can change a result.

    stop      whether somebody asked this process to end
    watchdog  ends the run where a process makes no progress
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
        """Tell people something (stderr, primary process, not when quiet)."""
        if self.is_primary and not self.quiet:
            print(message, file=sys.stderr, flush=True)

    def progress(
        self, iterable: Any, description: str, total: int | None = None, unit: str = "it", hide: bool = False
    ) -> Any:
        """The iterable with a progress bar where people look at one; every item is a sign of life."""
        from tqdm import tqdm

        if iterable is not None and self.world_size > 1:
            total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
            iterable = self.watchdog.beating(iterable)
        silent = hide or self.quiet or not self.is_primary or not sys.stderr.isatty()
        return tqdm(iterable, desc=description, total=total, unit=unit, disable=silent, dynamic_ncols=True)

    @contextmanager
    def process_group(self) -> Iterator[None]:
        """Join the other processes for the duration of a block; does nothing when alone."""
        if self.world_size == 1:
            yield
            return
        import torch
        from torch import distributed

        backend = "nccl" if self.device.type == "cuda" else "gloo"
        store, rank, world_size = next(distributed.rendezvous("env://"))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # torchrun keeps one store over its restarts: without this, processes look for those of the attempt before.
            # (With several nodes each counts its own restarts.)
            store = distributed.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        distributed.init_process_group(
            backend, timeout=PROCESS_GROUP_TIMEOUT, store=store, rank=rank, world_size=world_size
        )
        # A connection of its own, since one that waits would hold up the other; and names of its own, new each time.
        token = torch.tensor([secrets.randbits(62)], device=self.device)
        distributed.broadcast(token, src=0)
        self.watchdog.start(distributed.PrefixStore(f"watch_{int(token)}", store.clone()), rank, world_size)
        try:
            yield
        except BaseException:
            self.watchdog.finish(failed=True)
            raise  # without a word to the others' collectives: they may never answer
        self.watchdog.finish(failed=False)
        distributed.destroy_process_group()

    def is_asked_to_stop(self, step: int) -> bool:
        """Whether all processes are to stop now that this step is done: the same step for all of them.

        Meant for loops whose processes meet within every step: the first to be asked names its next step, before it
        takes it, and nobody can be further.
        """
        if self.world_size == 1:
            return bool(self.stop.asked)
        store = self.watchdog.store
        if self.stop.asked:
            store.compare_set("stop", "", str(step + 1))
        return store.check(["stop"]) and int(store.get("stop")) <= step

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            import torch

            with self.watchdog.waiting():
                torch.distributed.barrier()

    def broadcast(self, value: bool) -> bool:
        """The primary's answer on every process, so that all take the same way."""
        if self.world_size == 1:
            return value
        import torch

        flag = torch.tensor([int(value)], device=self.device)
        with self.watchdog.waiting():
            torch.distributed.broadcast(flag, src=0)
        return bool(flag.item())

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
        """[W, ...]: the arrays of all processes, of one shape, on every one of them."""
        import numpy

        rows = numpy.zeros((self.world_size, *array.shape), array.dtype)
        rows[self.rank] = array
        return self.all_reduce_sum(rows)


def make_environment(
    root_dir: str, data_dir: str, device: str, quiet: bool, num_workers: int, hang_minutes: float = 0.0
) -> Environment:
    """Read torchrun's variables, choose device and threads; every choice can be overridden by a flag or variable."""
    world_size, rank = _whole_number("WORLD_SIZE", 1), _whole_number("RANK", 0)
    local_rank = _whole_number("LOCAL_RANK", 0)
    return Environment(
        root_dir=resolve_root(root_dir),
        data_dir=Path(data_dir).expanduser() if data_dir else None,
        device_name=_choose_device(device, local_rank),
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        quiet=quiet,
        num_workers=num_workers,
        watchdog=Watchdog(60 * hang_minutes),
    )


def resolve_root(root_dir: str) -> Path:
    """--root_dir, else NONISOTROPIC_HOME, else output/ in the project folder."""
    return Path(root_dir or os.environ.get("NONISOTROPIC_HOME", "") or PROJECT_ROOT / "output").expanduser().absolute()


def limit_threads() -> None:
    """Unless OMP_NUM_THREADS or OMP_WAIT_POLICY say otherwise, let idle OpenMP threads sleep; call before torch.

    A thread that spins while its neighbour is kept from running costs 5-17 times the work (small machines,
    several processes). torchrun sets OMP_NUM_THREADS=1 itself.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


KEPT_BYTES = 32 << 20  # the largest threshold that mallopt takes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_memory() -> None:
    """Let the C library keep freed memory for the next tensor, where it is glibc.

    Otherwise large tensors are mapped afresh each time, a page fault for every 4 KiB, which costs more than many an
    operation on them.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _choose_device(name: str, local_rank: int) -> str:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device: expected auto, cpu, cuda or cuda:<n>, got '{name}'") from None
    if device.type != "cuda" or not torch.cuda.is_available():
        raise UsageError(f"--device={name}: no such device here; use --device=cpu")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UsageError(f"--device={name}: this machine has {torch.cuda.device_count()} GPUs; start fewer processes")
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def _whole_number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdigit():
        raise UsageError(f"the environment variable {variable} should be a whole number, got '{text}'")
    return int(text)
