"""Measurement of the time that work on a device takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def now(device: torch.device) -> float:
    """The clock in seconds, after everything that a GPU was given to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def timed(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """Add the time that a block takes on a device to an entry of `seconds`."""
    started = now(device)
    yield
    seconds[name] = seconds.get(name, 0.0) + now(device) - started
