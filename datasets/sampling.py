"""Seeded, class-stratified choices of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from foundations.desc import derive_seed
from foundations.errors import UsageError


def rows_by_class(labels: Tensor) -> dict[int, Tensor]:
    """Label -> its row numbers, ascending, by one sort of the labels; negative labels are left out."""
    order = labels.cpu().argsort(stable=True)
    counts = torch.bincount(labels[labels >= 0].cpu())
    parts = order[len(labels) - int(counts.sum()) :].split(counts.tolist())
    return {label: rows for label, rows in enumerate(parts) if len(rows)}


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
    for label, rows in rows_by_class(labels).items():
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[: int(quota[label])]])
    return torch.cat(chosen).sort().values


def held_out(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """The rows of training images that a run with `--validation_fraction` does not train on, ascending: the same ones
    for every replicate; none for a fraction of 0."""
    if not fraction:
        return torch.arange(0)
    return stratified_subset(labels, max(1, round(fraction * len(labels))), derive_seed(seed, 0, "validation"))


def complement(rows: Tensor, size: int) -> Tensor:
    """The row numbers below `size` that are not among `rows`."""
    left = torch.ones(size, dtype=torch.bool)
    left[rows] = False
    return left.nonzero().flatten()


def with_random_labels(labels: Tensor, fraction: float, num_classes: int, seed: int) -> Tensor:
    """The labels, a share of them drawn anew from all classes (Zhang et al. 2017, arXiv 1611.03530)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    changed = labels.clone()
    changed[chosen] = torch.randint(num_classes, (len(chosen),), generator=generator)
    return changed
