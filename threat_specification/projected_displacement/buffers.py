"""Reused memory for large temporary tensors."""

from __future__ import annotations

import torch
from torch import Tensor


class Buffers:
    """Tensors by name and dtype, enlarged when needed. Not thread-safe.

    Newly allocated large memory costs a page fault for each 4 KiB, several times the cost of the computation itself.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return uninitialised memory, which is valid until the next call with this name and dtype."""
        size = torch.Size(shape).numel()
        kept = self.kept.get((name, dtype))
        if kept is None or kept.numel() < size or kept.device != device:
            kept = self.kept[name, dtype] = torch.empty(size, dtype=dtype, device=device)
        return kept[:size].view(shape)
