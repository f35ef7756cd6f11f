"""A plugin of pytest: torch makes tensors and generators on the device that BENCHMARK_DEVICE names.

Tests of the mathematics, written for the CPU, then run on a GPU. Those that mix in tensors of the CPU fail there: what
does not pass is to be read, not counted.
"""

from __future__ import annotations

import os
from typing import Any

import torch

DEVICE = os.environ["BENCHMARK_DEVICE"]
_Generator: Any = torch.Generator


class Generator(_Generator):
    """A generator of the default device."""

    def __new__(cls, device: str = DEVICE) -> Any:
        return _Generator.__new__(_Generator, device=device)


torch.Generator = Generator  # type: ignore[misc]
torch.set_default_device(DEVICE)
