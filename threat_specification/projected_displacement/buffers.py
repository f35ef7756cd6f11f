"""Memory that is used again and again."""

from __future__ import annotations

import torch
from torch import Tensor


class Buffers:
    """Tensors by name and type, enlarged when needed. Not for several threads.

    Large memory that is fresh every time costs a page fault for each 4 KiB, several times what is computed with it.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialised memory; lives until the next call with this name and type."""
        size = torch.Size(shape).numel()
        kept = self.kept.get((name, dtype))
        if kept is None or kept.numel() < size or kept.device != device:
            kept = self.kept[name, dtype] = torch.empty(size, dtype=dtype, device=device)
        return kept[:size].view(shape)
