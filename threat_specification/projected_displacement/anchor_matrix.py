"""Products of vectors with all anchors, <v, a_j - centre> for v [B, D] and N anchors, for sets of any size.

Shapes: B vectors, D pixels, N anchors, n anchors of one tile, d pixels of one tile.

Subtracting the centre removes what images have in common, which reduces cancellation in ||a||^2 - 2<a, x> + ||x||^2.
The anchors of one device are stored in one of two ways:

    DensePart   one float32 matrix of a - centre, up to 1 GiB
    TiledPart   in their own dtype (uint8 stays uint8); converted tile by tile into one reused buffer

All products are float32: TF32, bf16 and autocast are switched off for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foundations.arithmetic import full_precision
from foundations.pixels import as_floats
from threat_specification.projected_displacement.buffers import Buffers
from threat_specification.projected_displacement.pace import pace_of
from threat_specification.projected_displacement.short_sums import short_sums

DENSE_BYTES = 1 << 30  # largest float32 matrix that is stored
TILE_COLUMNS = 4096  # longer float32 sums lose digits
GRAM_BYTES, GRAM_PRODUCTS = 1 << 28, 1 << 37  # limits: 8,192 anchors, and a few seconds of one processor
GRAM_ROWS = 256  # anchors that are float32 at a time, where a pass over all of them is made once
MIDDLE = 128  # uint8 - 128 is an int8


class TiledPart:
    """The anchors of one device in their own dtype; also the base class of DensePart.

    images   [N, D] uint8, or floats in [0, 1]
    centre   [D] float32
    unit     unit of a tile's values: 1 / 255 for uint8, else 1
    """

    def __init__(self, images: Tensor, centre: Tensor, rows_per_tile: int) -> None:
        self.images, self.centre, self.rows_per_tile = images, centre, min(rows_per_tile, len(images))
        self.unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
        self._buffers = Buffers()

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield (anchors, pixels, (a - centre) / unit as float32 [n, d]); a tile is valid until the next one."""
        for rows, columns in self._cuts(self.rows_per_tile, TILE_COLUMNS):
            part = self.images[rows, columns]
            tile = self._buffer(part.shape, torch.float32)
            if part.dtype == torch.uint8:
                tile.copy_(self.integers(rows, columns))
            else:
                tile.copy_(part).sub_(self.centre[columns])
            yield rows, columns, tile

    def integers(self, rows: slice, columns: slice) -> Tensor:
        """a - 128 as int8, [n, d], in a reused buffer: flipping the top bit of a uint8 subtracts 128."""
        part = self.images[rows, columns]
        return torch.bitwise_xor(part, MIDDLE, out=self._buffer(part.shape, torch.uint8)).view(torch.int8)

    def _buffer(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return self._buffers.get("tile", shape, dtype, self.images.device)

    def _cuts(self, tile_rows: int, tile_columns: int) -> Iterator[tuple[slice, slice]]:
        count, width = self.images.shape
        for row in range(0, count, tile_rows):
            for column in range(0, width, tile_columns):
                yield slice(row, min(row + tile_rows, count)), slice(column, min(column + tile_columns, width))

    def products(self, vectors: Tensor) -> Tensor:
        """<v, a_j - centre>, [B, N]."""
        out = vectors.new_zeros(len(self.images), len(vectors))
        for rows, columns, tile in self.tiles():
            out[rows].addmm_(tile, vectors[:, columns].T, alpha=self.unit)
        return out.T.clone(memory_format=torch.contiguous_format)  # never a view, which autograd refuses

    def exact_products(self, vectors: Tensor) -> Tensor:
        """<v, a_j - centre>, [B, N] float64: short float32 sums, added in float64."""
        out = vectors.new_zeros(len(self.images), len(vectors), dtype=torch.float64)
        for rows, columns, tile in self.tiles():
            for pixels in short_sums(tile.shape[1]):
                out[rows] += (tile[:, pixels] @ vectors[:, columns][:, pixels].T).mul_(self.unit)
        return out.T

    def square_products(self, weights: Tensor) -> Tensor:
        """<w, (a_j - centre)^2>, [B, N]."""
        out = weights.new_zeros(len(self.images), len(weights))
        for rows, columns, tile in self.tiles():
            out[rows].addmm_(tile.square(), weights[:, columns].T, alpha=self.unit**2)
        return out.T.contiguous()

    def combine(self, weights: Tensor) -> Tensor:
        """sum_j w_j (a_j - centre) for weights [B, N], [B, D]: the transpose of `products`."""
        out = weights.new_zeros(len(weights), self.images.shape[1])
        for rows, columns, tile in self.tiles():
            out[:, columns].addmm_(weights[:, rows], tile, alpha=self.unit)
        return out

    def squared_norms(self) -> Tensor:
        """||a_j - centre||^2, [N] float64."""
        out = torch.zeros(len(self.images), dtype=torch.float64, device=self.images.device)
        for rows, _, tile in self.tiles():
            out[rows] += tile.square().sum(1, dtype=torch.float64)
        return out * self.unit**2


class DensePart(TiledPart):
    """One float32 matrix of all anchors, which needs no conversion and few products."""

    def __init__(self, images: Tensor, centre: Tensor, rows_per_tile: int) -> None:
        super().__init__(images, centre, rows_per_tile)
        self.unit = 1.0
        self.matrix = as_floats(images) - centre

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        for rows, columns in self._cuts(self.rows_per_tile, TILE_COLUMNS):
            yield rows, columns, self.matrix[rows, columns]

    def products(self, vectors: Tensor) -> Tensor:
        # Long float32 sums lose digits, so sum over pieces of pixels, as TiledPart does.
        out = vectors[:, :TILE_COLUMNS] @ self.matrix[:, :TILE_COLUMNS].T
        for column in range(TILE_COLUMNS, self.matrix.shape[1], TILE_COLUMNS):
            piece = slice(column, column + TILE_COLUMNS)
            out.addmm_(vectors[:, piece], self.matrix[:, piece].T)
        return out


class _Products(torch.autograd.Function):
    """Products as an autograd function, since autograd cannot record operations on reused buffers."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, origins: Tensor | None, matrix: AnchorMatrix) -> Tensor:
        ctx.matrix, ctx.origins = matrix, origins
        with full_precision(matrix.device.type):
            # Computed first, while the vectors are in cache.
            dots = None if origins is None else torch.linalg.vecdot(vectors, origins).unsqueeze(1)
            products = matrix.over_parts("products", vectors)
        return products if dots is None else products.sub_(dots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        combined = ctx.matrix.combine(gradient)
        if ctx.origins is not None:
            combined -= gradient.sum(1, keepdim=True) * ctx.origins
        return combined, None, None


class AnchorMatrix:
    """N anchors on one or several devices; results are on the first. Not thread-safe, since buffers are reused.

    images      [N, ...] uint8, or floats in [0, 1] (also 16-bit)
    num_chunks  True: one float32 matrix up to 1 GiB, else tiles; 1: one matrix;
                n > 1: at most N / n anchors are float32 at a time
    centre      [D] float32 in place of the mean of these anchors, if they are a part of a larger set; uint8 tiles
                always have the centre 128 / 255
    """

    def __init__(
        self,
        images: Tensor,
        num_chunks: bool | int = True,
        devices: Sequence[torch.device | str] = (),
        centre: Tensor | None = None,
    ) -> None:
        flat = images.flatten(1)
        fits = 4 * flat.numel() <= DENSE_BYTES if num_chunks is True else num_chunks == 1
        holder = DensePart if fits else TiledPart
        self.shape = flat.shape
        places = list(devices)[: len(flat)] or [flat.device]
        tile_rows = pace_of(torch.device(places[0])).tile_rows
        rows_per_tile = tile_rows if num_chunks is True else math.ceil(len(flat) / num_chunks)
        if holder is TiledPart and not flat.is_floating_point():
            self.centre = flat.new_full(flat.shape[1:], MIDDLE / 255, dtype=torch.float32)
        else:
            self.centre = _mean(flat) if centre is None else centre
        parts = flat.tensor_split(len(places))
        self.parts = [holder(p.to(d), self.centre.to(d), rows_per_tile) for p, d in zip(parts, places, strict=True)]
        self.starts = [0, *torch.tensor([len(part) for part in parts]).cumsum(0).tolist()]
        self.device = self.parts[0].images.device
        self.centre = self.centre.to(self.device)
        self.squared_norms = torch.cat([part.squared_norms().to(self.device) for part in self.parts])

    def over_parts(self, method: str, vectors: Tensor) -> Tensor:
        """Call a method of all parts and join the results to [B, N]."""
        products = [getattr(part, method)(vectors.to(part.images.device)) for part in self.parts]
        return products[0] if len(products) == 1 else torch.cat([each.to(self.device) for each in products], 1)

    def products(self, vectors: Tensor, origins: Tensor | None = None) -> Tensor:
        """<v, a_j - centre - o> for float32 vectors [B, D] and origins [B, D] (or 0), [B, N]; differentiable once."""
        return _Products.apply(vectors, origins, self)

    def exact_products(self, vectors: Tensor) -> Tensor:
        """<v, a_j - centre> for float32 vectors [B, D], [B, N] float64; more exact than float32."""
        with torch.no_grad(), full_precision(self.device.type):
            return self.over_parts("exact_products", vectors)

    def square_products(self, weights: Tensor) -> Tensor:
        """<w, (a_j - centre)^2> for weights [B, D], [B, N]."""
        with torch.no_grad(), full_precision(self.device.type):
            return self.over_parts("square_products", weights)

    def combine(self, weights: Tensor) -> Tensor:
        """sum_j w_j (a_j - centre) for weights [B, N], [B, D]."""
        total = weights.new_zeros(len(weights), self.shape[1])
        with full_precision(self.device.type):
            for part, start, stop in zip(self.parts, self.starts, self.starts[1:], strict=False):
                total += part.combine(weights[:, start:stop].to(part.images.device)).to(self.device)
        return total

    def of_first(self, tensor: Tensor) -> Tensor:
        """The tensor of the first process, where processes work on the same examples; else the tensor itself."""
        return tensor

    @property
    def has_gram(self) -> bool:
        """True if the Gram matrix is small enough to be computed once and kept."""
        count, width = self.shape
        return 4 * count**2 <= GRAM_BYTES and count**2 * width <= GRAM_PRODUCTS

    @cached_property
    def gram(self) -> Tensor:
        """The Gram matrix <a_i - centre, a_j - centre>, [N, N] float32; computed at first use."""
        numbers = torch.arange(self.shape[0], device=self.device)
        with torch.no_grad():
            return torch.cat([self.products(self.rows(part) - self.centre) for part in numbers.split(GRAM_ROWS)])

    def rows(self, numbers: Tensor, buffers: Buffers | None = None) -> Tensor:
        """Anchors by number from the raw images, not centred: [P, D] float32 in [0, 1], in the buffers if given."""
        if len(self.parts) == 1:
            return _rows_in(self.parts[0].images, numbers, buffers or Buffers())
        return as_floats(self.stored_rows(numbers))

    def stored_rows(self, numbers: Tensor) -> Tensor:
        """Anchors by number, [P, D] in the dtype that they are stored in, on the first device."""
        if len(self.parts) == 1:
            return self.parts[0].images[numbers]
        out = torch.empty(len(numbers), self.shape[1], dtype=self.parts[0].images.dtype, device=self.device)
        for part, start, stop in zip(self.parts, self.starts, self.starts[1:], strict=False):
            here = ((numbers >= start) & (numbers < stop)).nonzero().flatten()
            out[here] = part.images[(numbers[here] - start).to(part.images.device)].to(self.device)
        return out


def _rows_in(images: Tensor, numbers: Tensor, buffers: Buffers) -> Tensor:
    """`as_floats` of chosen rows of images [N, D], in buffers."""
    shape = (len(numbers), images.shape[1])
    raw = buffers.get("raw", shape, images.dtype, images.device)
    torch.index_select(images, 0, numbers, out=raw)
    if images.dtype == torch.float32:
        return raw
    return as_floats(raw, out=buffers.get("rows", shape, torch.float32, images.device))


def _mean(flat: Tensor) -> Tensor:
    """Mean image, [D] float32, without a float copy of all images."""
    total = torch.zeros(flat.shape[1], dtype=torch.float64, device=flat.device)
    for part in flat.split(GRAM_ROWS):
        total += part.sum(0, dtype=torch.float64)
    return (total / len(flat) / (255 if flat.dtype == torch.uint8 else 1)).float()


def devices_from(home: torch.device, count: int) -> list[torch.device]:
    """For a GPU, up to `count` different GPUs, beginning with `home`; for another device, `count` times `home`."""
    if home.type != "cuda" or count == 1:
        return [home] * count
    first = home.index or 0
    present = torch.cuda.device_count()
    return [torch.device("cuda", (first + i) % present) for i in range(min(count, present))]
