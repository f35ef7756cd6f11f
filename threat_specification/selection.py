"""Choosing anchors: a registry of functions from the images of one class to row numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foundations.errors import UsageError


def farthest_first(features: Tensor, count: int) -> Tensor:
    """Greedy subset by cosine similarity: each pick is the row least similar to its most similar earlier pick.

    features [n, D] of any float type; the first row is the first pick; ties go to the smaller row number.
    O(n k D): a running maximum takes the place of similarities computed anew. Returns [count] row numbers.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    picks = torch.zeros(count, dtype=torch.long)
    nearest = torch.full((len(unit),), -torch.inf, device=unit.device)
    for k in range(count):
        if k > 0:
            picks[k] = int(nearest.argmin())  # the first of equal minima
        nearest = torch.maximum(nearest, unit @ unit[picks[k]])
        nearest[picks[k]] = torch.inf
    return picks


def greedy_subsets(images: Tensor, count: int, expansion: int, generator: torch.Generator) -> Tensor:
    """Two half-sets, each picked farthest-first from its own half of the shuffled images (arXiv 2501.18098).

    Each half is first cut to `expansion` candidates for every pick.
    """
    order = torch.randperm(len(images), generator=generator)
    picks = []
    for half, size in zip(order.tensor_split(2), (count - count // 2, count // 2), strict=True):
        candidates = half[: max(1, expansion) * size]
        if size:
            picks.append(candidates[farthest_first(images[candidates].flatten(1), size)])
    return torch.cat(picks)


def random(images: Tensor, count: int, expansion: int, generator: torch.Generator) -> Tensor:
    """Rows drawn uniformly without replacement."""
    return torch.randperm(len(images), generator=generator)[:count]


SELECTIONS: dict[str, Callable[[Tensor, int, int, torch.Generator], Tensor]] = {
    "greedy_subsets": greedy_subsets,
    "random": random,
}


def select(
    images: Tensor, labels: Tensor, method: str, per_label: int, expansion: int, seed: int, allowed: Tensor
) -> Tensor:
    """Row numbers of the anchors, class by class, `per_label` of each.

    images [n,C,H,W] uint8 or floats; labels [n]; allowed [n] bool: the rows that may be chosen.
    Every class has its own stream of random numbers, so that classes can be shared out over processes.
    """
    chosen = []
    for label in labels.unique().tolist():
        rows = ((labels == label) & allowed).nonzero().flatten()
        if len(rows) < per_label:
            raise UsageError(f"--per_label: expected at most {len(rows)}, the images of class {label}, got {per_label}")
        generator = torch.Generator().manual_seed((seed + label) % 2**63)
        chosen.append(rows[SELECTIONS[method](images[rows], per_label, expansion, generator)])
    return torch.cat(chosen)


def shared_between_classes(images: Tensor, labels: Tensor) -> Tensor:
    """[n] bool: rows whose image also occurs, bit for bit, with another label. They leave PD no direction."""
    seen: dict[bytes, set[int]] = {}
    keys = [image.tobytes() for image in images.cpu().numpy()]
    for key, label in zip(keys, labels.tolist(), strict=True):
        seen.setdefault(key, set()).add(label)
    return torch.tensor([len(seen[key]) > 1 for key in keys], device=labels.device)


def coverage(images: Tensor, labels: Tensor, anchors: Tensor) -> list[float]:
    """For each class, the lowest cosine similarity of one of its images to its most similar anchor (1: all covered).

    anchors holds row numbers of `images`.
    """
    lowest = []
    for label in labels.unique().tolist():
        mine = torch.nn.functional.normalize(images[anchors[labels[anchors] == label]].flatten(1).float(), dim=1)
        worst = 1.0
        for part in (labels == label).nonzero().flatten().split(4096):
            features = torch.nn.functional.normalize(images[part].flatten(1).float(), dim=1)
            worst = min(worst, float((features @ mine.T).amax(1).min()))
        lowest.append(worst)
    return lowest
