"""Random numbers that depend on (seed, data set index, draw) alone: not on batch, rank or what was drawn before.

A counter-based generator: the finaliser of SplitMix64 (Steele, Lea, Flood 2014) applied to a counter, vectorised.
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
    """SplitMix64's finaliser; int64 arithmetic wraps, which is what it wants."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def uniform(seed: int, index: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """[B, *shape] float32 in [0, 1): row b belongs to data set index[b], whatever else is in the batch."""
    size = 1
    for length in shape:
        size *= length
    key = _mix(_mix(index.long() * _GOLDEN + seed) + torch.full_like(index, draw, dtype=torch.long) * _MIX1)
    counter = torch.arange(size, device=index.device, dtype=torch.long)
    bits = _shift(_mix(key.view(-1, 1) + counter * _GOLDEN), 40)
    return (bits.float() / 2**24).view(len(index), *shape)
