"""Dual bounds of margins over parts of a region, many at once: what branch and bound compares and proves with.

A part is the region where some ReLUs have given signs. Its bound is that of a linear function nowhere below the margin,
as `UnitBounds.above` makes it, with three kinds of numbers free: slopes below open ReLUs, multipliers of the signs, and
multipliers of the half-spaces (Wang et al. 2021, Beta-CROWN; Zhang et al. 2022, GCP-CROWN). It holds for all of them in
their ranges, so it holds wherever their ascent stops.

Shapes: P parts, K margins, D pixels, M half-spaces, N ReLUs whose sign the bounds of units leave open.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy
import torch
from torch import Tensor

from testing.exact_bounds import SLACK, Largest, Region, UnitBounds, over
from testing.exact_network import Value

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
class Lines:
    """The lines around ReLUs that the signs of parts allow, [P, N] each; z is a ReLU's input.

    is_open      1 where the sign is not given, else 0;  on: 1 where it is positive
    steep, added  steep z + added is nowhere below the ReLU: the upper side of its triangle, or z, or 0
    pull         of a sign that is given, as a part of the ReLU's largest |z|; else 0
    """

    is_open: Tensor
    on: Tensor
    steep: Tensor
    added: Tensor
    pull: Tensor

    def take(self, chosen: Tensor) -> Lines:
        return Lines(*(getattr(self, one.name)[chosen] for one in fields(self)))


@dataclass(frozen=True)
class Backward:
    """A linear function of the pixels for each part, nowhere below the margin there, and how it came about.

    bound   [P] its largest value in the box, widened by SLACK
    pixels  [P, D] its slopes
    into    [P, N] factors of the ReLUs in what is above them
    below   [P, N] slopes of the lines below them
    """

    bound: Tensor
    pixels: Tensor
    into: Tensor
    below: Tensor


@dataclass(frozen=True)
class Layer:
    """The ReLUs of one block whose sign is open, o of the N: columns `at`.

    parts     number of an earlier block -> [o, its open ReLUs] of their inputs; 0 -> [o, D]
    constant  [o] of these
    """

    number: int
    parts: dict[int, Tensor]
    constant: Tensor
    at: slice

    def to(self, dtype: torch.dtype) -> Layer:
        parts = {block: part.to(dtype) for block, part in self.parts.items()}
        return replace(self, parts=parts, constant=self.constant.to(dtype))


@dataclass(frozen=True)
class Dual:
    """A network's open ReLUs between the pixels and some margins, over a region, as dense tensors of one type.

    The ReLUs of known sign are affine functions of these and of the pixels: they are put in place of their variables.

    low, high     [N] bounds of the inputs of the ReLUs
    margins       number of a block -> [K, its open ReLUs], 0 -> [K, D];  constant [K]
    middle, half  [D] of the box;  rows, limits: [M, D] and [M], each divided by its distance from the middle
    """

    layers: list[Layer]
    low: Tensor
    high: Tensor
    margins: dict[int, Tensor]
    constant: Tensor
    middle: Tensor
    half: Tensor
    rows: Tensor
    limits: Tensor

    @classmethod
    def of(cls, bounds: UnitBounds, margins: Value) -> Dual:
        """In float64; all blocks whose bounds are known are ReLUs, and the margins depend on these."""
        region, layers, first, pairs = bounds.region, list[Layer](), 0, [numpy.zeros((2, 0))]
        everything = numpy.arange(len(region.lower))
        known = {0: Known(everything, everything[:0], {}, numpy.zeros(0))}
        for number, (low, high) in sorted(bounds.before.items()):
            block = bounds.network.blocks[number]
            assert block.before is not None and block.groups is None
            unknown, on = numpy.flatnonzero((low < 0) & (high > 0)), numpy.flatnonzero(low >= 0)
            parts, constant = _dense(block.before.rows(unknown), known)
            at = slice(first, first := first + len(unknown))
            layers.append(Layer(number, _tensors(parts), torch.from_numpy(constant), at))
            pairs.append(numpy.stack([low[unknown], high[unknown]]))
            known[number] = Known(unknown, on, *_dense(block.before.rows(on), known))
        lower, upper = torch.from_numpy(region.lower), torch.from_numpy(region.upper)
        middle, through, limits = (lower + upper) / 2, torch.from_numpy(region.rows), torch.from_numpy(region.limits)
        away = (limits - through @ middle).abs()
        away = away.clamp_min(1e-3 * away.max() if len(away) else 0).clamp_min(1e-12)
        parts, constant = _dense(margins, known)
        low, high = torch.from_numpy(numpy.concatenate(pairs, 1))
        into, box = (_tensors(parts), torch.from_numpy(constant)), (middle, (upper - lower) / 2)
        return cls(layers, low, high, *into, *box, through / away[:, None], limits / away)

    @property
    def open_units(self) -> int:
        return len(self.low)

    def to(self, dtype: torch.dtype) -> Dual:
        names = [one.name for one in fields(self) if one.name not in ("layers", "margins")]
        margins = {block: part.to(dtype) for block, part in self.margins.items()}
        others = {name: getattr(self, name).to(dtype) for name in names}
        return replace(self, layers=[layer.to(dtype) for layer in self.layers], margins=margins, **others)

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
        slopes = (self.high > -self.low).float().expand(len(rows), -1)
        multipliers = slopes.new_zeros(len(rows), len(self.rows))
        bound = slopes.new_full((len(rows),), torch.inf)
        return Parts(rows, signs, slopes.clone(), torch.zeros_like(slopes), multipliers, bound)

    def bounds(self, parts: Parts) -> Tensor:
        """No point of a part has a larger margin, [P], widened by SLACK."""
        free = (one.to(self.low.dtype) for one in (parts.slopes, parts.forces, parts.multipliers))
        return self.backward(parts.row, self.lines(parts.signs), *free).bound

    def gaps(self, parts: Parts) -> Tensor:
        """The part of a bound that each open ReLU adds, about, [P, N]; -1 where the sign is given."""
        lines = self.lines(parts.signs)
        into = self.backward(parts.row, lines, parts.slopes, parts.forces, parts.multipliers).into
        below = torch.minimum(parts.slopes * -self.low, (1 - parts.slopes) * self.high)
        return torch.where(lines.is_open > 0, into.clamp_min(0) * lines.added - into.clamp_max(0) * below, -1)

    def lines(self, signs: Tensor) -> Lines:
        """Of parts with these signs, [P, N] int8."""
        is_open, on = (signs == 0).to(self.low.dtype), (signs > 0).to(self.low.dtype)
        steep = is_open * (self.high / (self.high - self.low))
        pull = signs / torch.maximum(-self.low, self.high)
        return Lines(is_open, on, steep + on, steep * -self.low, pull)

    def backward(self, row: Tensor, lines: Lines, slopes: Tensor, forces: Tensor, multipliers: Tensor) -> Backward:
        """From the margin to the pixels, each ReLU is replaced by a line above or below it."""
        below, into = torch.addcmul(lines.on, lines.is_open, slopes), torch.zeros_like(slopes)
        pushed = lines.pull * forces
        factors = {block: part[row] for block, part in self.margins.items()}
        constant = self.constant[row] + multipliers @ self.limits
        for layer in reversed(self.layers):
            at = layer.at
            if layer.number in factors:
                into[:, at] = factors.pop(layer.number)
            up, down = into[:, at].clamp_min(0), into[:, at].clamp_max(0)
            inner = torch.addcmul(torch.addcmul(pushed[:, at], up, lines.steep[:, at]), down, below[:, at])
            constant = constant + (up * lines.added[:, at]).sum(1) + inner @ layer.constant
            for earlier, part in layer.parts.items():
                moved = inner @ part
                factors[earlier] = factors[earlier] + moved if earlier in factors else moved
        pixels = factors.get(0, 0) - multipliers @ self.rows
        middle, half = pixels @ self.middle, pixels.abs() @ self.half
        bound = constant + middle + half + SLACK * (1 + constant.abs() + middle.abs() + half)
        return Backward(bound, pixels, into, below)

    def exact(self, parts: Parts, number: int, end: float) -> Largest:
        """The largest margin of one part in which all signs are given, by a linear program; if there is time enough.

        Minus a large number where the part has no point.
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
        found = over(part, numpy.append(margin[:-1], -PRICE * max(abs(margin[:-1]).max(), 1)), end)
        bound = constant + found.bound
        point = None if found.point is None else found.point[:-1]
        return Largest(bound + SLACK * (1 + abs(bound) + abs(constant)), point)


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
        added = {block: part[:, one.unknown].toarray()}
        if len(one.on):
            moved = part[:, one.on].toarray()
            constant += moved @ one.constant
            added |= {earlier: moved @ inner for earlier, inner in one.parts.items()}
        for number, matrix in added.items():
            parts[number] = parts[number] + matrix if number in parts else matrix
    return parts, constant


def _tensors(parts: dict[int, numpy.ndarray]) -> dict[int, Tensor]:
    return {block: torch.from_numpy(part) for block, part in parts.items()}
