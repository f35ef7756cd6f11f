"""Answers of an emulated device to the questions that torch asks of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

GIGABYTES = 80 << 30  # of memory that the device claims to have


class _Autocast(torch.autocast):
    """torch.autocast; to C++ the emulated device is the CPU."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _set_rng_state(state: Tensor, device: Any = None) -> None:
    if state.is_cuda or state.dtype != torch.uint8:
        raise TypeError("set_rng_state: expected a ByteTensor on the CPU")


def answers_of_a_device(wait: Callable[[str], None]) -> Iterator[Any]:
    """Functions of torch that ask for a GPU, replaced by answers; `wait` notes a reason why the host waits."""
    answers: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: wait("synchronize"),
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": _set_rng_state,
        "mem_get_info": lambda device=None: (GIGABYTES, GIGABYTES),
        "get_device_name": lambda device=None: "emulated",
        "is_bf16_supported": lambda *args, **kwargs: True,
    }
    for name, answer in answers.items():
        yield mock.patch.object(torch.cuda, name, answer)
    # Streams and graphs, which optimizers ask for, are C++'s.
    yield mock.patch.object(torch.accelerator, "is_available", lambda: False)
    enabled = torch.is_autocast_enabled
    yield mock.patch.object(torch, "autocast", _Autocast)
    yield mock.patch.object(
        torch, "is_autocast_enabled", lambda kind="cuda": enabled("cpu" if kind == "cuda" else kind)
    )
