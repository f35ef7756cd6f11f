"""Choosing anchors: farthest-first with a running maximum against similarities computed anew for every pick."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from threat_specification.projected_displacement.anchor_selection import farthest_first

IMAGES, PIXELS, PICKS, RUNS = 5000, 3072, 50, 5


def recomputed(features: Tensor, count: int) -> Tensor:
    """Each pick: similarities of all rows to all picks so far."""
    unit = torch.nn.functional.normalize(features, dim=1)
    picks = [0]
    while len(picks) < count:
        nearest = (unit @ unit[picks].T).amax(1)
        nearest[picks] = torch.inf
        picks.append(int(nearest.argmin()))
    return torch.tensor(picks)


def rows() -> list[tuple[str, float, str, str]]:
    """(case, measured, floor, aim)."""
    features = torch.rand(IMAGES, PIXELS, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {"ours": [], "recomputed": []}
    for _ in range(RUNS):
        picks = {}
        for name, method in (("ours", farthest_first), ("recomputed", recomputed)):
            start = time.perf_counter()
            picks[name] = method(features, PICKS)
            times[name].append(time.perf_counter() - start)
        if not picks["ours"].equal(picks["recomputed"]):
            raise RuntimeError("the two ways picked different rows")
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["recomputed"], strict=True))
    case = f"farthest-first k={PICKS}, n={IMAGES}, D={PIXELS} against similarities computed anew, identical picks (x)"
    return [(case, ratio, "10", "20")]
