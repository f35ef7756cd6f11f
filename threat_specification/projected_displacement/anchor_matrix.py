"""Products of vectors with all anchors, <v, a_j - centre> for v [B, D] and N anchors, at any size.

Shapes: B vectors, D pixels, N anchors, n anchors of one tile, d pixels of one tile.

The centre takes out what images share, so that little cancels in ||a||^2 - 2<a, x> + ||x||^2. How the
anchors of one device are held:

    DensePart   one float32 matrix of a - mean, up to 1 GiB
    TiledPart   as they came (uint8 stays uint8); converted tile by tile into one reused buffer

Products are float32 throughout: TF32, bf16 and autocast are switched off around them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from threat_specification.projected_displacement.buffers import Buffers

DENSE_BYTES = 1 << 30  # above this the float32 matrix is not kept
TILE_ROWS, TILE_COLUMNS = 256, 4096  # 4 MiB of float32: the tile is still in cache when it is multiplied
GRAM_BYTES, GRAM_PRODUCTS = 1 << 28, 1 << 37  # up to 8,192 anchors; a few seconds of one processor
MIDDLE = 128  # uint8 - 128 is an int8


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """float32 products in float32: no TF32, no bf16, no autocast; restores what it found."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    lowered = [(backend, backend.fp32_precision) for backend in backends if backend.fp32_precision in ("tf32", "bf16")]
    # Entering contexts that change nothing would cost 3 % of a small product.
    autocast = torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()
    try:
        for backend, _ in lowered:
            backend.fp32_precision = "ieee"
        with autocast:
            yield
    finally:
        for backend, precision in lowered:
            backend.fp32_precision = precision


class TiledPart:
    """The anchors of one device as they came; also the base of the other holders.

    images   [N, D] uint8, or floats in [0, 1]
    centre   [D] float32
    unit     what a tile's values count in: 1 / 255 for uint8, else 1
    """

    def __init__(self, images: Tensor, centre: Tensor, rows_per_tile: int) -> None:
        self.images, self.centre, self.rows_per_tile = images, centre, min(rows_per_tile, len(images))
        self.unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
        self._buffers = Buffers()

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """(anchors, pixels, (a - centre) / unit as float32 [n, d]); a tile lives until the next one."""
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
        return out.T.contiguous()

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
    """One float32 matrix: nothing to convert, one product."""

    def __init__(self, images: Tensor, centre: Tensor, rows_per_tile: int) -> None:
        super().__init__(images, centre, rows_per_tile)
        self.unit = 1.0
        self.matrix = as_floats(images) - centre

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        for rows, columns in self._cuts(self.rows_per_tile, TILE_COLUMNS):
            yield rows, columns, self.matrix[rows, columns]

    def products(self, vectors: Tensor) -> Tensor:
        # Long float32 sums lose digits: they are cut in pieces, as the other holders' are.
        out = vectors[:, :TILE_COLUMNS] @ self.matrix[:, :TILE_COLUMNS].T
        for column in range(TILE_COLUMNS, self.matrix.shape[1], TILE_COLUMNS):
            piece = slice(column, column + TILE_COLUMNS)
            out.addmm_(vectors[:, piece], self.matrix[:, piece].T)
        return out


def as_floats(images: Tensor) -> Tensor:
    """float32 in [0, 1]; a byte k means the float32 nearest to k / 255."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


class _Products(torch.autograd.Function):
    """Lets gradients pass through buffers that are reused."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, origins: Tensor | None, matrix: AnchorMatrix) -> Tensor:
        ctx.matrix, ctx.origins = matrix, origins
        with full_precision(matrix.device.type):
            # First, while the vectors are in cache.
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
    """N anchors on one or several devices; results are on the first. Buffers are reused: not for several threads.

    images      [N, ...] uint8, or floats in [0, 1] (16-bit ones too)
    num_chunks  True: by size, one float32 matrix up to 1 GiB, else tiles; 1: one matrix;
                n > 1: only N / n anchors are ever held as float32
    centre      [D] float32 to use in place of the mean of these anchors, where they are a part of more
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
        rows_per_tile = TILE_ROWS if num_chunks is True else math.ceil(len(flat) / num_chunks)
        if holder is TiledPart and not flat.is_floating_point():
            self.centre = flat.new_full(flat.shape[1:], MIDDLE / 255, dtype=torch.float32)
        else:
            self.centre = _mean(flat) if centre is None else centre
        places = list(devices)[: len(flat)] or [flat.device]
        parts = flat.tensor_split(len(places))
        self.parts = [holder(p.to(d), self.centre.to(d), rows_per_tile) for p, d in zip(parts, places, strict=True)]
        self.starts = [0, *torch.tensor([len(part) for part in parts]).cumsum(0).tolist()]
        self.device = self.parts[0].images.device
        self.centre = self.centre.to(self.device)
        self.squared_norms = torch.cat([part.squared_norms().to(self.device) for part in self.parts])

    def over_parts(self, method: str, vectors: Tensor) -> Tensor:
        """[B, N] of a method of the parts."""
        products = [getattr(part, method)(vectors.to(part.images.device)) for part in self.parts]
        return products[0] if len(products) == 1 else torch.cat([each.to(self.device) for each in products], 1)

    def products(self, vectors: Tensor, origins: Tensor | None = None) -> Tensor:
        """<v, a_j - centre - o> for float32 vectors [B, D] and origins [B, D] (or 0), [B, N]; differentiable once."""
        return _Products.apply(vectors, origins, self)

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

    @property
    def has_gram(self) -> bool:
        """Whether products between all anchors are worth their memory and their time, which are spent once."""
        count, width = self.shape
        return 4 * count**2 <= GRAM_BYTES and count**2 * width <= GRAM_PRODUCTS

    @cached_property
    def gram(self) -> Tensor:
        """<a_i - centre, a_j - centre>, [N, N] float32; made when it is first asked for."""
        numbers = torch.arange(self.shape[0], device=self.device)
        with torch.no_grad():
            return torch.cat([self.products(self.rows(part) - self.centre) for part in numbers.split(TILE_ROWS)])

    def rows(self, numbers: Tensor, buffers: Buffers | None = None) -> Tensor:
        """Anchors by number, uncentred, from the raw images: [P, D] float32 in [0, 1], in the buffers if given."""
        if len(self.parts) == 1:
            return _rows_in(self.parts[0].images, numbers, buffers or Buffers())
        out = torch.empty(len(numbers), self.shape[1], device=self.device)
        for part, start, stop in zip(self.parts, self.starts, self.starts[1:], strict=False):
            here = ((numbers >= start) & (numbers < stop)).nonzero().flatten()
            out[here] = as_floats(part.images[(numbers[here] - start).to(part.images.device)]).to(self.device)
        return out


def _rows_in(images: Tensor, numbers: Tensor, buffers: Buffers) -> Tensor:
    """`as_floats` of chosen images [N, D], in buffers."""
    shape = (len(numbers), images.shape[1])
    raw = buffers.get("raw", shape, images.dtype, images.device)
    torch.index_select(images, 0, numbers, out=raw)
    if images.dtype == torch.float32:
        return raw
    rows = buffers.get("rows", shape, torch.float32, images.device).copy_(raw)
    return rows.div_(255) if images.dtype == torch.uint8 else rows


def _mean(flat: Tensor) -> Tensor:
    """Mean image, [D] float32, without a float copy of all."""
    total = torch.zeros(flat.shape[1], dtype=torch.float64, device=flat.device)
    for part in flat.split(TILE_ROWS):
        total += part.sum(0, dtype=torch.float64)
    return (total / len(flat) / (255 if flat.dtype == torch.uint8 else 1)).float()


def devices_from(home: torch.device, count: int) -> list[torch.device]:
    """`count` devices, the home first: other GPUs as far as there are, else the home several times."""
    if home.type != "cuda" or count == 1:
        return [home] * count
    first = home.index or 0
    present = torch.cuda.device_count()
    return [torch.device("cuda", (first + i) % present) for i in range(min(count, present))]
