"""Dual bounds of margins over parts of a region, many at once: what branch and bound compares and proves with.

A part is the region where some ReLUs have given signs. Its bound is that of a linear function nowhere below the margin,
as `UnitBounds.above` makes it, with three kinds of numbers free: slopes below open ReLUs, multipliers of the signs, and
multipliers of the half-spaces (Wang et al. 2021, Beta-CROWN; Zhang et al. 2022, GCP-CROWN). It holds for all of them in
their ranges, so it holds wherever their ascent stops.

Shapes: P parts, K margins, D pixels, M half-spaces, N ReLUs whose sign the bounds of units leave open.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy
import torch
from torch import Tensor

from testing.exact_bounds import SLACK, Region, UnitBounds, over
from testing.exact_network import Value

RATE = 0.1  # of Adam, for slopes; for multipliers times the size of the margins
DECAY, DECAY_LONG = 0.9, 0.97  # of that rate, in each step; in each of at least LONG
LONG = 50
PRICE = 100  # of moving rows, times the largest slope (or 1): more than their multipliers are together


@dataclass(frozen=True)
class Parts:
    """Parts of a region, each with one margin and the numbers that its bound was found with.

    row          [P] that margin
    signs        [P, N] int8: 1 where a ReLU's input is at least 0, -1 where at most 0, 0 where either
    slopes       [P, N] of the lines below open ReLUs, from 0 to 1
    forces       [P, N] multipliers of the signs, at least 0
    multipliers  [P, M] of the half-spaces, at least 0
    bound        [P] no point of the part has a larger margin (but for the rounding of float32)
    """

    row: Tensor
    signs: Tensor
    slopes: Tensor
    forces: Tensor
    multipliers: Tensor
    bound: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def take(self, chosen: Tensor | slice) -> Parts:
        return Parts(*(getattr(self, one.name)[chosen] for one in fields(self)))

    @classmethod
    def joined(cls, several: list[Parts]) -> Parts:
        return cls(*(torch.cat([getattr(each, one.name) for each in several]) for one in fields(cls)))


@dataclass(frozen=True)
class Layer:
    """The ReLUs of one block whose sign is open, o of the N: columns `at`.

    parts      number of an earlier block -> [o, its open ReLUs] of their inputs; 0 -> [o, D]
    constant   [o] of these
    low, high  [o] bounds of these
    """

    number: int
    parts: dict[int, Tensor]
    constant: Tensor
    at: slice
    low: Tensor
    high: Tensor

    def to(self, dtype: torch.dtype) -> Layer:
        parts = {block: part.to(dtype) for block, part in self.parts.items()}
        numbers = {name: getattr(self, name).to(dtype) for name in ("constant", "low", "high")}
        return replace(self, parts=parts, **numbers)


@dataclass(frozen=True)
class Dual:
    """A network's open ReLUs between the pixels and some margins, over a region, as dense tensors of one type.

    The ReLUs of known sign are affine functions of these and of the pixels: they are put in place of their variables.

    margins   number of a block -> [K, its open ReLUs], 0 -> [K, D];  constant [K]
    middle, half  [D] of the box;  rows, limits: [M, D] and [M], each divided by its distance from the middle
    """

    layers: list[Layer]
    margins: dict[int, Tensor]
    constant: Tensor
    middle: Tensor
    half: Tensor
    rows: Tensor
    limits: Tensor

    @classmethod
    def of(cls, bounds: UnitBounds, margins: Value) -> Dual:
        """In float64; all blocks whose bounds are known are ReLUs, and the margins depend on these."""
        region, layers, first = bounds.region, list[Layer](), 0
        everything = numpy.arange(len(region.lower))
        known = {0: Known(everything, everything[:0], {}, numpy.zeros(0))}
        for number, (low, high) in sorted(bounds.before.items()):
            block = bounds.network.blocks[number]
            assert block.before is not None and block.groups is None
            unknown, on = numpy.flatnonzero((low < 0) & (high > 0)), numpy.flatnonzero(low >= 0)
            parts, constant = _dense(block.before.rows(unknown), known)
            at = slice(first, first := first + len(unknown))
            pair = (torch.from_numpy(side[unknown]) for side in (low, high))
            layers.append(Layer(number, _tensors(parts), torch.from_numpy(constant), at, *pair))
            known[number] = Known(unknown, on, *_dense(block.before.rows(on), known))
        lower, upper = torch.from_numpy(region.lower), torch.from_numpy(region.upper)
        middle, through, limits = (lower + upper) / 2, torch.from_numpy(region.rows), torch.from_numpy(region.limits)
        away = (limits - through @ middle).abs()
        away = away.clamp_min(1e-3 * away.max() if len(away) else 0).clamp_min(1e-12)
        parts, constant = _dense(margins, known)
        box = (middle, (upper - lower) / 2)
        return cls(layers, _tensors(parts), torch.from_numpy(constant), *box, through / away[:, None], limits / away)

    @property
    def open_units(self) -> int:
        return self.layers[-1].at.stop if self.layers else 0

    def to(self, dtype: torch.dtype) -> Dual:
        tensors = [self.constant, self.middle, self.half, self.rows, self.limits]
        margins = {block: part.to(dtype) for block, part in self.margins.items()}
        return Dual([layer.to(dtype) for layer in self.layers], margins, *(one.to(dtype) for one in tensors))

    def measured_in(self, unit: Tensor) -> Dual:
        """With margins in another unit: one for all, or one for each."""
        margins = {block: part / unit[..., None] for block, part in self.margins.items()}
        return replace(self, margins=margins, constant=self.constant / unit)

    def within(self, chosen: Tensor) -> Dual:
        """With some half-spaces alone."""
        return replace(self, rows=self.rows[chosen], limits=self.limits[chosen])

    def whole(self, rows: Tensor) -> Parts:
        """The whole region, once for each of these margins, before any ascent."""
        signs = torch.zeros(len(rows), self.open_units, dtype=torch.int8)
        slopes = torch.cat([layer.high > -layer.low for layer in self.layers]).float().expand(len(rows), -1)
        multipliers = slopes.new_zeros(len(rows), len(self.rows))
        bound = slopes.new_full((len(rows),), torch.inf)
        return Parts(rows, signs, slopes.clone(), torch.zeros_like(slopes), multipliers, bound)

    def bounds(self, parts: Parts, gaps: Tensor | None = None) -> Tensor:
        """No point of a part has a larger margin, [P], widened by SLACK.

        gaps   if given, [P, N] to be filled with what each open ReLU adds to the bound, about
        """
        dtype = self.constant.dtype
        slopes, forces, multipliers = (one.to(dtype) for one in (parts.slopes, parts.forces, parts.multipliers))
        signs = parts.signs.to(dtype)
        is_open, on = (signs == 0).to(dtype), (signs > 0).to(dtype)
        factors = {block: part[parts.row] for block, part in self.margins.items()}
        constant = self.constant[parts.row] + multipliers @ self.limits
        for layer in reversed(self.layers):
            if layer.number not in factors:
                continue
            own, at = factors.pop(layer.number), layer.at
            up, down = own.clamp_min(0), own.clamp_max(0)
            steep = layer.high / (layer.high - layer.low)
            above = up * is_open[:, at] * (-layer.low * steep)
            if gaps is not None:
                below = torch.minimum(slopes[:, at] * -layer.low, (1 - slopes[:, at]) * layer.high)
                gaps[:, at] = above - down * is_open[:, at] * below
            inner = up * (is_open[:, at] * steep + on[:, at]) + down * (is_open[:, at] * slopes[:, at] + on[:, at])
            inner = inner + signs[:, at] * forces[:, at] / torch.maximum(-layer.low, layer.high)
            constant = constant + above.sum(1) + inner @ layer.constant
            for earlier, part in layer.parts.items():
                moved = inner @ part
                factors[earlier] = factors[earlier] + moved if earlier in factors else moved
        pixels = factors.get(0, 0) - multipliers @ self.rows
        middle, half = pixels @ self.middle, pixels.abs() @ self.half
        return constant + middle + half + SLACK * (1 + constant.abs() + middle.abs() + half)

    def exact(self, parts: Parts, number: int, end: float) -> float:
        """As `bounds`, for one part in which all signs are given: its largest margin, by a linear program.

        Infinity if that is not found by `end`, on the monotonic clock.
        """
        signs, row = parts.signs[number].double(), int(parts.row[number])
        wide = torch.cat([torch.eye(len(self.middle)).double(), self.middle.new_zeros(len(self.middle), 1)], 1)
        maps = {0: wide}  # block -> its variables as functions of the pixels: slopes, and the constant last
        rows, limits = [self.rows], [self.limits]
        for layer in self.layers:
            value = torch.stack([part @ maps[block] for block, part in layer.parts.items()]).sum(0)
            value[:, -1] += layer.constant
            own = signs[layer.at, None]
            maps[layer.number] = value * (own > 0)
            beyond = -own * value
            beyond = beyond / beyond.abs().amax(1, keepdim=True).clamp_min(1e-300)
            rows.append(beyond[:, :-1])
            limits.append(-beyond[:, -1])
        # One more pixel, which only takes away, moves all rows: so there is a point where the part has none.
        through = numpy.pad(torch.cat(rows).numpy(), ((0, 0), (0, 1)), constant_values=-1)
        margin = torch.stack([into[row] @ maps[block] for block, into in self.margins.items()]).sum(0).numpy()
        lower, upper = (self.middle - self.half).numpy(), (self.middle + self.half).numpy()
        to_move = numpy.abs(through[:, :-1]) @ numpy.maximum(abs(lower), abs(upper)) + torch.cat(limits).abs().numpy()
        part = Region(
            numpy.append(lower, 0), numpy.append(upper, to_move.max(initial=0)), through, torch.cat(limits).numpy()
        )
        constant = float(margin[-1]) + float(self.constant[row])
        found = constant + over(part, numpy.append(margin[:-1], -PRICE * max(abs(margin[:-1]).max(), 1)), end)
        return found + SLACK * (1 + abs(found) + abs(constant))

    def ascended(self, parts: Parts, steps: int, enough: float, size: float, end: float) -> Parts:
        """The parts with the best bounds that some steps of Adam meet; they end where all are below `enough`.

        end    the last step begins before this time of the monotonic clock
        size   of the margins, which their multipliers are measured by
        """
        free = [one.clone().requires_grad_(True) for one in (parts.slopes, parts.forces, parts.multipliers)]
        rates = [RATE, RATE * size, RATE * size]
        groups = [{"params": [one], "lr": rate} for one, rate in zip(free, rates, strict=True)]
        best, bound = [one.detach().clone() for one in free], torch.full_like(parts.bound, torch.inf)
        adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
        for step in range(steps + 1):
            found = self.bounds(replace(parts, slopes=free[0], forces=free[1], multipliers=free[2]))
            better = found.detach() < bound
            bound = torch.where(better, found.detach(), bound)
            for kept, one in zip(best, free, strict=True):
                kept[better] = one.detach()[better]
            if step == steps or time.monotonic() > end or bool((bound < enough).all()):
                break
            adam.zero_grad()
            found.sum().backward()
            adam.step()
            with torch.no_grad():
                free[0].clamp_(0, 1)
                for one in free[1:]:
                    one.clamp_min_(0)
            for group in adam.param_groups:
                group["lr"] *= DECAY_LONG if steps >= LONG else DECAY
        return replace(parts, slopes=best[0], forces=best[1], multipliers=best[2], bound=bound)


@dataclass(frozen=True)
class Known:
    """The variables of a block as functions of pixels and open ReLUs; those that are neither open nor on are 0.

    unknown, on  numbers of the open ones (in block 0, of all pixels) and of those that are their inputs
    parts        number of an earlier block -> [on, its open ReLUs] of these inputs;  constant [on]
    """

    unknown: numpy.ndarray
    on: numpy.ndarray
    parts: dict[int, numpy.ndarray]
    constant: numpy.ndarray


def _dense(value: Value, known: dict[int, Known]) -> tuple[dict[int, numpy.ndarray], numpy.ndarray]:
    """A value as a function of pixels and open ReLUs: matrices by block, and the constant."""
    constant, parts = value.constant.copy(), dict[int, numpy.ndarray]()
    for block, part in value.parts.items():
        one = known[block]
        moved = part[:, one.on].toarray()
        constant += moved @ one.constant
        added = {earlier: moved @ inner for earlier, inner in one.parts.items()}
        for number, matrix in ({block: part[:, one.unknown].toarray()} | added).items():
            parts[number] = parts[number] + matrix if number in parts else matrix
    return parts, constant


def _tensors(parts: dict[int, numpy.ndarray]) -> dict[int, Tensor]:
    return {block: torch.from_numpy(part) for block, part in parts.items()}
