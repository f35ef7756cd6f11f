"""Products of vectors with all anchors, <v, a_j - centre> for v [B, D] and N anchors, at any size.

Shapes: B vectors, D pixels, N anchors, n anchors of one tile, d pixels of one tile.

The centre takes out what images share, so that little cancels in ||a||^2 - 2<a, x> + ||x||^2. How the
anchors of one device are held is an entry of `HOLDERS`:

    dense   one float32 matrix of a - mean
    tiled   as they came (uint8 stays uint8); converted tile by tile into one reused buffer
    int8    uint8 only: integer products of a - 128 with the bytes of v, three of them as accurate as float32; two
            give `rough_products`, enough to tell which few anchors can be the maximum. For CPUs with VNNI

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

from foundations.errors import UsageError, look_up
from threat_specification.projected_displacement.buffers import Buffers

DENSE_BYTES = 1 << 30  # above this the float32 matrix is not kept
TILE_ROWS, TILE_COLUMNS = 256, 4096  # 4 MiB of float32: the tile is still in cache when it is multiplied
GRAM_BYTES, GRAM_PRODUCTS = 1 << 28, 1 << 37  # up to 8,192 anchors; a few seconds of one processor
INTEGER_TILE, INTEGER_COLUMNS = 1 << 21, 1 << 14  # 128 * 127 * 2^14 < 2^31: the sums fit an int32
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


class TiledShard:
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


class DenseShard(TiledShard):
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


class IntegerShard(TiledShard):
    """Products of 8-bit integers, summed in int32."""

    def products(self, vectors: Tensor) -> Tensor:
        return self._integer_products(vectors, 3)[0]

    def rough_products(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """<v, a_j - centre> for v rounded to two bytes, [B, N], and the largest error of an entry of v, [B]."""
        return self._integer_products(vectors, 2)

    def _integer_products(self, vectors: Tensor, num_bytes: int) -> tuple[Tensor, Tensor]:
        digits, unit = split_bytes(vectors, num_bytes)
        out = vectors.new_zeros(len(self.images), len(digits))
        width = min(INTEGER_COLUMNS, vectors.shape[1])
        for rows, columns in self._cuts(INTEGER_TILE // width, width):
            out[rows] += torch._int_mm(self.integers(rows, columns), digits[:, columns].T)
        value = out[:, -len(vectors) :]
        for place in reversed(range(num_bytes - 1)):
            value = value * 256 + out[:, place * len(vectors) : (place + 1) * len(vectors)]
        return (value * (unit / 255).view(1, -1)).T.contiguous(), unit / 2


HOLDERS: dict[str, type[TiledShard]] = {"dense": DenseShard, "tiled": TiledShard, "int8": IntegerShard}


def split_bytes(vectors: Tensor, num_bytes: int) -> tuple[Tensor, Tensor]:
    """vectors [B, D] ~ unit * sum_k 256^k digit_k with digits in [-128, 127]: int8 [n B, D], lowest first; unit [B]."""
    places = sum(256**place for place in range(num_bytes))
    unit = vectors.abs().amax(1).clamp_min(1e-35) / (127 * places)
    # With 128 added in every place the bytes of the number are the digits plus 128; flipping the top bit subtracts it.
    whole = (vectors / unit.view(-1, 1)).round_().add_(128 * places).to(torch.int32)
    little_endian = whole.view(torch.uint8).view(*vectors.shape, 4)[:, :, :num_bytes]
    digits = torch.empty(num_bytes, *vectors.shape, dtype=torch.uint8, device=vectors.device)
    torch.bitwise_xor(little_endian.permute(2, 0, 1), MIDDLE, out=digits)
    return digits.view(torch.int8).flatten(0, 1), unit


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
            products = matrix.over_shards("products", vectors)
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
    product     "float32", or "int8" (see the top of this file)
    centre      [D] float32 to use in place of the mean of these anchors, where they are a part of more
    """

    def __init__(
        self,
        images: Tensor,
        num_chunks: bool | int = True,
        devices: Sequence[torch.device | str] = (),
        product: str = "float32",
        centre: Tensor | None = None,
    ) -> None:
        flat = images.flatten(1)
        holder = look_up(PRODUCTS, product, "product")(flat, num_chunks)
        self.shape = flat.shape
        rows_per_tile = TILE_ROWS if num_chunks is True else math.ceil(len(flat) / num_chunks)
        if holder is not DenseShard and not flat.is_floating_point():
            self.centre = flat.new_full(flat.shape[1:], MIDDLE / 255, dtype=torch.float32)
        else:
            self.centre = _mean(flat) if centre is None else centre
        places = list(devices)[: len(flat)] or [flat.device]
        parts = flat.tensor_split(len(places))
        self.shards = [holder(p.to(d), self.centre.to(d), rows_per_tile) for p, d in zip(parts, places, strict=True)]
        self.starts = [0, *torch.tensor([len(part) for part in parts]).cumsum(0).tolist()]
        self.device = self.shards[0].images.device
        self.centre = self.centre.to(self.device)
        self.squared_norms = torch.cat([shard.squared_norms().to(self.device) for shard in self.shards])

    def over_shards(self, method: str, vectors: Tensor) -> Tensor:
        """[B, N] of a method of the shards."""
        parts = [getattr(shard, method)(vectors.to(shard.images.device)) for shard in self.shards]
        return parts[0] if len(parts) == 1 else torch.cat([part.to(self.device) for part in parts], 1)

    def products(self, vectors: Tensor, origins: Tensor | None = None) -> Tensor:
        """<v, a_j - centre - o> for float32 vectors [B, D] and origins [B, D] (or 0), [B, N]; differentiable once."""
        return _Products.apply(vectors, origins, self)

    @property
    def has_rough_products(self) -> bool:
        return isinstance(self.shards[0], IntegerShard)

    def rough_products(self, vectors: Tensor, origins: Tensor) -> tuple[Tensor, Tensor]:
        """<v, a_j - centre - o> for v rounded to 16 bits, [B, N], and the standard deviation of its error, [B, N]."""
        parts = []
        with full_precision(self.device.type):
            dots = torch.linalg.vecdot(vectors, origins).unsqueeze(1)
        for shard in self.shards:
            assert isinstance(shard, IntegerShard)
            parts.append(shard.rough_products(vectors.to(shard.images.device)))
        error = parts[0][1].to(self.device).view(-1, 1) / math.sqrt(3)  # of a uniform error in +-unit / 2
        products = torch.cat([part.to(self.device) for part, _ in parts], 1) if len(parts) > 1 else parts[0][0]
        return products.sub_(dots), error * self.squared_norms.float().sqrt()

    def square_products(self, weights: Tensor) -> Tensor:
        """<w, (a_j - centre)^2> for weights [B, D], [B, N]."""
        with torch.no_grad(), full_precision(self.device.type):
            return self.over_shards("square_products", weights)

    def combine(self, weights: Tensor) -> Tensor:
        """sum_j w_j (a_j - centre) for weights [B, N], [B, D]."""
        total = weights.new_zeros(len(weights), self.shape[1])
        with full_precision(self.device.type):
            for shard, start, stop in zip(self.shards, self.starts, self.starts[1:], strict=False):
                total += shard.combine(weights[:, start:stop].to(shard.images.device)).to(self.device)
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
        if len(self.shards) == 1:
            return _rows_in(self.shards[0].images, numbers, buffers or Buffers())
        out = torch.empty(len(numbers), self.shape[1], device=self.device)
        for shard, start, stop in zip(self.shards, self.starts, self.starts[1:], strict=False):
            here = ((numbers >= start) & (numbers < stop)).nonzero().flatten()
            out[here] = as_floats(shard.images[(numbers[here] - start).to(shard.images.device)]).to(self.device)
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


def _by_size(flat: Tensor, num_chunks: bool | int) -> type[TiledShard]:
    fits = 4 * flat.numel() <= DENSE_BYTES if num_chunks is True else num_chunks == 1
    return HOLDERS["dense" if fits else "tiled"]


def _integers(flat: Tensor, num_chunks: bool | int) -> type[TiledShard]:
    if flat.dtype != torch.uint8:
        raise UsageError(f"product 'int8': expected uint8 anchors, got {flat.dtype}; use product='float32'")
    return HOLDERS["int8"]


PRODUCTS = {"float32": _by_size, "int8": _integers}


def devices_from(home: torch.device, count: int) -> list[torch.device]:
    """`count` devices, the home first: other GPUs as far as there are, else the home several times."""
    if home.type != "cuda" or count == 1:
        return [home] * count
    first = home.index or 0
    present = torch.cuda.device_count()
    return [torch.device("cuda", (first + i) % present) for i in range(min(count, present))]
