"""Seeded, class-stratified choices of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from foundations.errors import UsageError


def stratified_subset(labels: Tensor, size: int, seed: int) -> Tensor:
    """`size` row numbers, ascending, in which every class has its share to within one (largest remainders)."""
    if not 0 < size <= len(labels):
        raise UsageError(f"expected a subset of 1 to {len(labels)} examples, got {size}")
    counts = torch.bincount(labels)
    exact = counts.double() * size / len(labels)
    quota = exact.floor().long()
    # Stable, so that equal remainders go to the smaller label on every machine.
    by_remainder = torch.argsort(exact - quota, descending=True, stable=True)
    quota[by_remainder[: size - int(quota.sum())]] += 1
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label, amount in enumerate(quota.tolist()):
        rows = (labels == label).nonzero().flatten()
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:amount]])
    return torch.cat(chosen).sort().values


def complement(rows: Tensor, size: int) -> Tensor:
    """The row numbers below `size` that are not among `rows`."""
    left = torch.ones(size, dtype=torch.bool)
    left[rows] = False
    return left.nonzero().flatten()
