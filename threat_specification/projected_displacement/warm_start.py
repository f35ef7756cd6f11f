"""The active anchors of the last projection, from which the next one starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from threat_specification.projected_displacement.buffers import Buffers
from threat_specification.projected_displacement.directions import UnsafeDirections


@dataclass
class WarmStart:
    """Results of the last projection of a bound threat; an initial guess for the next one, which checks it.

    anchors      [B, K] int64 working sets
    multipliers  [B, K] float64, 0 if the constraint of the anchor is not active
    longest      [B] float32 that of the bound threat: at least every |v|
    buffers      memory for the rows of the working sets
    widest       largest number of active anchors, if the host has learnt it
    """

    longest: Tensor
    anchors: Tensor
    multipliers: Tensor
    buffers: Buffers
    widest: int = 0

    @classmethod
    def empty(cls, bound: UnsafeDirections) -> WarmStart:
        """A warm start without any guess."""
        none = torch.zeros(len(bound.examples), 0, device=bound.examples.device)
        return cls(bound.longest, none.long(), none.double(), Buffers())

    def store(self, numbers: Tensor, anchors: Tensor, multipliers: Tensor, width: int | None = None) -> None:
        """Keep the active anchors of working sets [R, K] and their multipliers.

        numbers  [R] the examples
        width    most anchors to keep (default: the largest number of active ones, for which the host waits)
        """
        width = int((multipliers > 0).sum(1).max()) if width is None else width
        lack = max(0, width - self.anchors.shape[1])
        # The padding is anchor 0 with multiplier 0; anchors with multiplier 0 are not read.
        self.anchors = torch.nn.functional.pad(self.anchors, (0, lack))
        self.multipliers = torch.nn.functional.pad(self.multipliers, (0, lack))
        largest, places = multipliers.topk(width, dim=1)
        self.multipliers[numbers] = 0
        self.multipliers[numbers, :width] = largest
        self.anchors[numbers, :width] = anchors.gather(1, places)
