"""Linear lower bounds of a network's margins over boxes of pixels, for many images at once.

The inputs of each layer are bounded by intervals first. A margin is then followed backwards to the pixels, each ReLU
and maximum replaced by a line on its safe side (Zhang et al. 2018). `refined` bounds small layers backwards too.

Everything is in float64, and every bound is moved outwards by SLACK, far more than float64 rounds: so bounds hold for
the network of real numbers with these weights.

Shapes: B images, K classes, D pixels; P pairs of an image and a linear function of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foundations.plain_networks import SLACK, Pair, PlainNetwork, margins

PIECE_BYTES = 1 << 27  # of the largest layer of the pairs that are worked on together
MOST_REFINED = 512  # units of a layer that `refined` bounds one by one


@dataclass(frozen=True)
class Lines:
    """Functions <slope, p> + constant of the pixels p of an image: [P, D], [P], and [P] its number `which`."""

    slope: Tensor
    constant: Tensor
    which: Tensor

    def least(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Their smallest values in boxes [B, D], rounded down, [P]."""
        low, high = self.slope * lower[self.which], self.slope * upper[self.which]
        size = self.constant.abs() + torch.maximum(low.abs(), high.abs()).sum(1)
        return self.constant + torch.minimum(low, high).sum(1) - SLACK * (1 + size)

    def take(self, chosen: Tensor) -> Lines:
        return Lines(self.slope[chosen], self.constant[chosen], self.which[chosen])


def bounds_of_layers(network: PlainNetwork, lower: Tensor, upper: Tensor, refined: bool = False) -> list[Pair]:
    """Bounds of the input of each step for images in boxes [B,C,H,W], and of the logits.

    refined   bound the inputs of ReLUs and maxima backwards too, in layers of at most MOST_REFINED
    """
    found = [(lower, upper)]
    curved = False  # the first layer's intervals are exact
    for number, step in enumerate(network.steps):
        low = found[-1][0]
        if refined and curved and not step.is_affine and low[0].numel() <= MOST_REFINED:
            found[-1] = _tighter(network, found, number)
        curved |= not step.is_affine
        found.append(step.interval(*found[-1]))
    return found


def _tighter(network: PlainNetwork, found: list[Pair], number: int) -> Pair:
    """The bounds of a step's input, each the better one of the given and that of a line over the box."""
    low, high = found[number]
    count, size = len(low), low[0].numel()
    eye = torch.eye(size, dtype=low.dtype, device=low.device).view(size, *low.shape[1:])
    lower, upper = (side.flatten(1) for side in found[0])
    least, most = [], []
    which = torch.arange(count, device=low.device).repeat_interleave(size)
    unit = torch.arange(size, device=low.device).repeat(count)
    for part in _pieces(len(which), found):
        at, factors = which[part], eye[unit[part]]
        least.append(below(network, found, factors, at, number).least(lower, upper))
        most.append(-below(network, found, -factors, at, number).least(lower, upper))
    low = torch.maximum(low, torch.cat(least).view_as(low))
    return low, torch.maximum(torch.minimum(high, torch.cat(most).view_as(high)), low)


def below(network: PlainNetwork, found: list[Pair], factors: Tensor, which: Tensor, upto: int | None = None) -> Lines:
    """Lines that are nowhere above linear functions of the output of the first `upto` steps (default: of logits).

    found     bounds of the input of each of these steps
    factors   [P, ...] of that output, of the images `which` [P]
    """
    constant = factors.new_zeros(len(factors))
    for number in reversed(range(len(network.steps) if upto is None else upto)):
        factors, added = network.steps[number].below(factors, *(side[which] for side in found[number]))
        constant = constant + added
    return Lines(factors.flatten(1), constant, which)


def margin_lines(network: PlainNetwork, found: list[Pair], labels: Tensor) -> Lines:
    """Lines nowhere above the margins of every image over every other class."""
    factors, which = margins(labels, found[-1][0].shape[1])
    parts = [below(network, found, factors[part], which[part]) for part in _pieces(len(which), found)]
    if not parts:
        return Lines(found[0][0].flatten(1)[which], factors.new_zeros(0), which)
    return Lines(*(torch.cat([getattr(each, name) for each in parts]) for name in ("slope", "constant", "which")))


def _pieces(count: int, found: list[Pair]) -> Iterator[slice]:
    """Consecutive pairs whose largest layer fits into PIECE_BYTES."""
    widest = max(low[0].numel() for low, _ in found)
    step = max(1, PIECE_BYTES // (8 * widest))
    return (slice(first, min(first + step, count)) for first in range(0, count, step))
