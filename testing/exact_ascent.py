"""The ascent of dual bounds: Adam, with the gradient of a bound written out.

The gradient of a largest value is that of the function which is largest there (Danskin): so it comes from one pass
forward, at the point of the box where the linear function of the pixels is largest.

Shapes as in testing/exact_dual.py: P parts, N open ReLUs, M half-spaces; W = 2 N + M numbers of a part.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from testing.exact_dual import Backward, Dual, Lines, Parts

RATE = 0.1  # of Adam, for slopes; for multipliers times the size of the margins
DECAY, DECAY_LONG = 0.9, 0.97  # of that rate, in each step; in each of at least LONG
LONG = 50
BETAS = 0.7, 0.9  # of Adam; with 0.9, 0.99 a search takes twice as many parts
FEWER = 3 / 4  # of the parts are left: then the others are not worked on any more


def ascended(dual: Dual, parts: Parts, steps: int, enough: float, size: float, end: float) -> Parts:
    """The parts with the best bounds that some steps meet, or any that are below `enough`.

    size   of the margins, which their multipliers are measured by
    end    the last step begins before this time of the monotonic clock
    """
    units = dual.open_units
    best = torch.cat([parts.slopes, parts.forces, parts.multipliers], 1)
    bound = torch.full_like(parts.bound, torch.inf)
    left, row, lines, free = torch.arange(len(parts)), parts.row, dual.lines(parts.signs), best.clone()
    rate = RATE * torch.where(torch.arange(free.shape[1]) < units, 1.0, size)
    first, second = torch.zeros_like(free), torch.zeros_like(free)
    for step in range(steps + 1):
        found = dual.backward(row, lines, *free.tensor_split((units, 2 * units), 1))
        better = found.bound < bound[left]
        bound[left[better]], best[left[better]] = found.bound[better], free[better]
        more = ~(bound[left] < enough)
        if step == steps or time.monotonic() > end or not bool(more.any()):
            break
        slope = gradient(dual, lines, found)
        if int(more.sum()) < FEWER * len(left):
            left, row, lines = left[more], row[more], lines.take(more)
            free, slope, first, second = (one[more] for one in (free, slope, first, second))
        first.lerp_(slope, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
        spread = (second / (1 - BETAS[1] ** (step + 1))).sqrt_().add_(1e-8)
        free.sub_(first / spread * (rate / (1 - BETAS[0] ** (step + 1))))
        free.clamp_min_(0)[:, :units].clamp_max_(1)
        rate = rate * (DECAY_LONG if steps >= LONG else DECAY)
    slopes, forces, multipliers = best.tensor_split((units, 2 * units), 1)
    return replace(parts, slopes=slopes, forces=forces, multipliers=multipliers, bound=bound)


def gradient(dual: Dual, lines: Lines, found: Backward) -> Tensor:
    """The gradient of each bound, [P, W]: by slopes below ReLUs, by forces, by multipliers of half-spaces."""
    values = {0: dual.middle + dual.half * found.pixels.sign()}
    inputs = torch.empty_like(found.into)
    for layer in dual.layers:
        at = layer.at
        z = layer.constant + sum(values[earlier] @ part.T for earlier, part in layer.parts.items())
        inputs[:, at] = z
        above = torch.addcmul(lines.added[:, at], lines.steep[:, at], z)
        values[layer.number] = torch.where(found.into[:, at] > 0, above, found.below[:, at] * z)
    by_slopes = found.into.clamp_max(0) * lines.is_open * inputs
    return torch.cat([by_slopes, lines.pull * inputs, dual.limits - values[0] @ dual.rows.T], 1)
