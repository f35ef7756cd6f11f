"""Random numbers of a perturbation, which depend only on (seed, name of the perturbation, data set index).

All severities of a perturbation use the same numbers, so that only the strength differs between them.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from threat_specification.attacks.random_numbers import uniform

DRAWS = 1024  # most draws of one perturbation; after more it could reuse the numbers of another


class Draws:
    """A random stream for each image: row b of every draw depends on index[b], not on the rest of the batch."""

    def __init__(self, seed: int, index: Tensor, name: str) -> None:
        self.seed, self.index = seed, index
        self.next = zlib.crc32(name.encode()) * DRAWS

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """[B, *shape] uniform in [low, high)."""
        drawn = uniform(self.seed, self.index, self.next, shape)
        self.next += 1
        return low + (high - low) * drawn

    def normal(self, *shape: int) -> Tensor:
        """[B, *shape] standard normal (Box and Muller 1958)."""
        radius = (-2 * torch.log1p(-self.uniform(*shape))).sqrt()
        return radius * torch.cos(self.uniform(*shape, high=2 * math.pi))

    def integers(self, high: int, *shape: int) -> Tensor:
        """[B, *shape] uniform integers from 0 to high - 1."""
        return (self.uniform(*shape) * high).long().clamp_max(high - 1)

    def signs(self, *shape: int) -> Tensor:
        """[B, *shape] random signs, -1 or 1."""
        return self.integers(2, *shape).float() * 2 - 1
