"""Random numbers that depend only on (seed, data set index, draw), not on the batch, the rank or earlier draws.

The generator is counter-based: it applies the finaliser of SplitMix64 (Steele, Lea, Flood 2014) to a counter.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Finaliser of SplitMix64; int64 arithmetic wraps around, as the finaliser requires."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def uniform(seed: int, index: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """[B, *shape] float32 in [0, 1): row b depends on data set index[b], not on the rest of the batch."""
    size = 1
    for length in shape:
        size *= length
    key = _mix(_mix(index.long() * _GOLDEN + seed) + torch.full_like(index, draw, dtype=torch.long) * _MIX1)
    counter = torch.arange(size, device=index.device, dtype=torch.long)
    bits = _shift(_mix(key.view(-1, 1) + counter * _GOLDEN), 40)
    return (bits.float() / 2**24).view(len(index), *shape)
