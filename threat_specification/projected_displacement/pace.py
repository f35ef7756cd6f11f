"""Sizes and ways of working that suit a kind of device.

On a CPU, operations on small blocks stay in its cache, and looking at a result costs nothing. On other devices every
operation is a launch, so blocks are large, and every look at a result makes the host wait, so looks are few.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pace:
    """Sizes for one kind of device; none of them changes a result beyond rounding.

    rows_bytes    rows of working sets processed at a time
    tile_bytes    float64 rows at a time
    piece_bytes   differences of near pairs at a time; they are kept between calls if they fit
    tile_rows     anchors of a tile
    fixed_shapes  the projection first tries `fixed_shapes.py`
    """

    rows_bytes: int
    tile_bytes: int
    piece_bytes: int
    tile_rows: int
    fixed_shapes: bool


# Device type -> pace; every type that is not named has OTHERS.
PACES = {"cpu": Pace(8 << 20, 1 << 20, 1 << 26, 256, False)}
OTHERS = Pace(1 << 30, 1 << 28, 1 << 30, 16_384, True)


def pace_of(device: torch.device) -> Pace:
    """The pace of a device."""
    return PACES.get(device.type, OTHERS)


def numbers_of(mask: Tensor, count: int) -> Tensor:
    """The indices of the True entries of a mask, in order, given how many there are: `nonzero` without a wait."""
    return mask.logical_not().to(torch.uint8).argsort(stable=True)[:count]
