"""Products of float32 vectors with more digits than a float32 sum has: short float32 sums, added in float64.

This takes little longer than one float32 product, while a product of float64 copies takes twice the memory and, on many
GPUs, dozens of times as long.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, bmm, float64

SHORT, MOST = 64, 64  # pixels of a sum, unless there would be more sums than this; some processors lose digits in 256


def exact_products(rows: Tensor, others: Tensor) -> Tensor:
    """<v, w> of float32 vectors [R, K, D] and [R, k, D], [R, K, k] float64: short float32 sums, added in float64."""
    total = rows.new_zeros(*rows.shape[:2], others.shape[1], dtype=float64)
    for pixels in short_sums(rows.shape[2]):
        total += bmm(rows[:, :, pixels], others[:, :, pixels].transpose(1, 2))
    return total


def short_sums(pixels: int) -> Iterator[slice]:
    """Slices of pixels, so few in each that a float32 sum over them loses hardly a digit."""
    step = max(SHORT, -(-pixels // MOST))
    return (slice(start, min(start + step, pixels)) for start in range(0, pixels, step))
