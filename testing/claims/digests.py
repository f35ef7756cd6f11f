"""Digests that tell whether two machines have the same weights and the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

PART = 500  # images read at a time


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 of all weights and buffers, by name."""
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Bytes of any type of number, those that NumPy does not know too.
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def images_digest(read: Callable[[Tensor], Tensor], rows: Tensor, labels: Tensor) -> str:
    """The SHA-256 of the images in these rows and of their labels; its first 12 digits are those of an AnchorSet."""
    first = read(rows[:1])
    state = hashlib.sha256(str((first.dtype, (len(rows), *first.shape[1:]))).encode())
    for part in rows.split(PART):
        state.update(read(part).cpu().numpy().tobytes())
    state.update(labels.long().cpu().numpy().tobytes())
    return state.hexdigest()
