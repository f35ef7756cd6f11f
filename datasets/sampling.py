"""Selection of rows of a data set: by class, stratified subsets, held-out images; random labels."""

from __future__ import annotations

import torch
from torch import Tensor

from foundations.desc import derive_seed
from foundations.errors import UsageError


def rows_by_class(labels: Tensor) -> dict[int, Tensor]:
    """Label -> its row numbers, ascending; negative labels are left out. The labels are sorted only once."""
    order = labels.cpu().argsort(stable=True)
    counts = torch.bincount(labels[labels >= 0].cpu())
    parts = order[len(labels) - int(counts.sum()) :].split(counts.tolist())
    return {label: rows for label, rows in enumerate(parts) if len(rows)}


def stratified_subset(labels: Tensor, size: int, seed: int, by_label: bool = False) -> Tensor:
    """`size` random row numbers, ascending; every class keeps its share, up to one image (largest remainder method).

    Equal remainders are ordered at random: by label, a small sample would hold the first classes alone. With fewer
    images than classes, classes are drawn with probabilities that follow their sizes.

    by_label   equal remainders go to the smaller labels, as protocols chose that are published

    Raises UsageError if there are fewer than `size` labels.
    """
    if not 0 < size <= len(labels):
        raise UsageError(f"expected a subset of 1 to {len(labels)} examples, got {size}")
    generator = torch.Generator().manual_seed(seed)
    quota = _quota(torch.bincount(labels).cpu(), size, None if by_label else derive_seed(seed, 0, "classes"))
    chosen = []
    for label, rows in rows_by_class(labels).items():
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[: int(quota[label])]])
    return torch.cat(chosen).sort().values


def _quota(counts: Tensor, size: int, seed: int | None) -> Tensor:
    """The number of images of each class, [K], in a sample of `size` of classes with these counts [K].

    seed   of the order of equal remainders; None: by label
    """
    total = int(counts.sum())
    quota, remainder = counts * size // total, counts * size % total  # whole numbers, so that equal ones are equal
    places = size - int(quota.sum())
    # A generator of its own: the draw within a class does not depend on it.
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    if generator and not int(quota.sum()):
        more = torch.multinomial(remainder.double(), places, generator=generator)
    else:
        order = torch.randperm(len(counts), generator=generator) if generator else torch.arange(len(counts))
        more = order[torch.argsort(remainder[order], descending=True, stable=True)[:places]]
    quota[more] += 1
    return quota


def held_out(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """The rows of training images that a run with `--validation_fraction` does not train on, ascending.

    They are the same for every replicate; empty for a fraction of 0.
    """
    if not fraction:
        return torch.arange(0)
    return stratified_subset(labels, max(1, round(fraction * len(labels))), derive_seed(seed, 0, "validation"))


def complement(rows: Tensor, size: int) -> Tensor:
    """The row numbers below `size` that are not among `rows`."""
    left = torch.ones(size, dtype=torch.bool)
    left[rows] = False
    return left.nonzero().flatten()


def with_random_labels(labels: Tensor, fraction: float, num_classes: int, seed: int) -> Tensor:
    """The labels, with a random share of them replaced by random classes (Zhang et al. 2017, arXiv 1611.03530)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    changed = labels.clone()
    changed[chosen] = torch.randint(num_classes, (len(chosen),), generator=generator)
    return changed
