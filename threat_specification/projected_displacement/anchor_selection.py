"""Selection of anchors: a registry of functions from the rows of one class to the chosen rows.

A callable reads only the images that a method needs, so that a data set need not fit in memory. All methods that
compare images do so in a `SelectionSpace`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from foundations.errors import UsageError
from threat_specification.projected_displacement.selection_space import SelectionSpace

Load = Callable[[Tensor], Tensor]  # row numbers [n] -> images [n,C,H,W], uint8 or floats in [0, 1]
PART = 8 << 20  # bytes of float features whose lengths are computed at a time
COVERED = 256  # images that `coverage` reads at a time
REFRESH = 64  # most rows whose similarity is updated at a time


def unit_features(images: Tensor, space: SelectionSpace) -> Tensor:
    """Images in a space, flattened and scaled to length 1, [n, D] float32."""
    return torch.nn.functional.normalize(space.features(images), dim=1)


def farthest_first(features: Tensor, count: int, shift: Tensor | float = 0.0, factor: Tensor | float = 1.0) -> Tensor:
    """Greedy subset by cosine similarity: each pick is the row least similar to its most similar earlier pick.

    features [n, D] of any dtype, compared as (features - shift) * factor; the first row is the first pick; ties go to
    the smaller row number. Returns [count] row numbers. The cost is at most O(n count D). A row's similarity to its
    most similar pick can only grow, so its last computed value is a lower bound. Only rows whose bound does not exceed
    the smallest known value are updated.
    """
    parts = features.split(max(1, PART // (4 * features.shape[1])))
    lengths = torch.cat([((part.float() - shift) * factor).norm(dim=1) for part in parts]).clamp_min(1e-12)
    nearest = torch.full((len(features),), -torch.inf, device=features.device)
    seen = torch.zeros(len(features), dtype=torch.long, device=features.device)
    picks = torch.zeros(count, dtype=torch.long, device=features.device)
    picked = features.new_zeros((count, features.shape[1]), dtype=torch.float32)
    for k in range(count):
        if k > 0:
            picks[k] = _least_similar(features, shift, lengths, picked[:k], nearest, seen)
        # Twice the factor, since the other side of the product <(a - shift) factor, (b - shift) factor> goes without.
        picked[k] = (features[picks[k]].float() - shift) * factor / lengths[picks[k]] * factor
        nearest[picks[k]], seen[picks[k]] = torch.inf, count
    return picks.cpu()


def _least_similar(
    features: Tensor, shift: Tensor | float, lengths: Tensor, picked: Tensor, nearest: Tensor, seen: Tensor
) -> Tensor:
    """The row with the smallest similarity to its most similar pick.

    `nearest` has a row's similarity over its first `seen` picks. Rows that could be the smallest are updated first.
    """
    least = nearest.new_tensor(torch.inf)
    while True:
        stale = ((nearest <= least) & (seen < len(picked))).nonzero().flatten()
        if not len(stale):
            return nearest.argmin()  # the first of equal minima
        if len(stale) > REFRESH:
            stale = stale[nearest[stale].topk(REFRESH, largest=False).indices]
        missing = picked[int(seen[stale].min()) :]
        along = ((features[stale].float() - shift) @ missing.T).amax(1) / lengths[stale]
        nearest[stale] = torch.maximum(nearest[stale], along)
        seen[stale] = len(picked)
        least = torch.minimum(least, nearest[stale].min())


def greedy_subsets(load: Load, space: SelectionSpace, rows: Tensor, count: int, expansion: int, seed: int) -> Tensor:
    """Two half-sets, each picked farthest-first from its own half of the shuffled rows (arXiv 2501.18098).

    Each half is first cut to `expansion` candidates for every pick. The first count - count // 2 rows of the result are
    the first half-set.
    """
    order = rows[_shuffled(len(rows), seed)]
    picks = []
    for half, size in zip(order.tensor_split(2), (count - count // 2, count // 2), strict=True):
        candidates = half[: max(1, expansion) * size]
        if size:
            images = load(candidates)
            picks.append(candidates[farthest_first(images.flatten(1), size, *space.affine(images))])
    return torch.cat(picks)


def random(load: Load, space: SelectionSpace, rows: Tensor, count: int, expansion: int, seed: int) -> Tensor:
    """Rows drawn uniformly without replacement; reads no image, so that the space has no effect."""
    return rows[_shuffled(len(rows), seed)[:count]]


def kmeans(load: Load, space: SelectionSpace, rows: Tensor, count: int, expansion: int, seed: int) -> Tensor:
    """The images nearest to `count` cluster centres (scikit-learn), among `expansion` candidates for each centre."""
    from sklearn.cluster import KMeans

    candidates = rows[_shuffled(len(rows), seed)[: max(1, expansion) * count]]
    features = space.features(load(candidates))
    centres = KMeans(count, n_init=1, random_state=seed % 2**32).fit(features.cpu().numpy()).cluster_centers_
    distances = torch.cdist(torch.from_numpy(centres).to(features), features)
    chosen: list[int] = []
    for row in distances:  # if an image is nearest to two centres, the second centre takes its next nearest image
        row[chosen] = torch.inf
        chosen.append(int(row.argmin()))
    return candidates[chosen]


def k_center(load: Load, space: SelectionSpace, rows: Tensor, count: int, expansion: int, seed: int) -> Tensor:
    """Farthest-first traversal in l2 over all images of the class (Gonzalez 1985), from a random one.

    The picks cover the images within twice the smallest radius that `count` centres can have. Cost: O(n count D).
    """
    order = rows[_shuffled(len(rows), seed)]
    images = load(order)
    features, (_, factor) = images.flatten(1), space.affine(images)
    parts = features.split(max(1, PART // (4 * features.shape[1])))
    nearest = torch.full((len(order),), torch.inf, device=features.device)
    picks = [0]
    while len(picks) < count:
        centre = features[picks[-1]].float()
        squared = torch.cat([((part.float() - centre) * factor).square().sum(1) for part in parts])
        nearest = torch.minimum(nearest, squared)
        nearest[picks[-1]] = -1  # equal images are not picked twice
        picks.append(int(nearest.argmax()))
    return order[picks]


SELECTIONS: dict[str, Callable[[Load, SelectionSpace, Tensor, int, int, int], Tensor]] = {
    "greedy_subsets": greedy_subsets,
    "k_center": k_center,
    "random": random,
    "kmeans": kmeans,
}
# Methods whose first and second half of a class are two choices that know nothing of one another. k_center takes the
# images farthest from its earlier ones, kmeans one of each cluster: their halves share out one choice.
INDEPENDENT_HALVES = ("greedy_subsets", "random")


def select_class(
    load: Load, space: SelectionSpace, rows: Tensor, label: int, method: str, count: int, expansion: int, seed: int
) -> Tensor:
    """Choose `count` rows of one class. Classes have separate random numbers, so processes can divide the classes."""
    if len(rows) < count:
        raise UsageError(f"--per_label: expected at most {len(rows)}, the images of class {label}, got {count}")
    return SELECTIONS[method](load, space, rows, count, expansion, (seed + label) % 2**63)


def coverage(load: Load, spaces: Sequence[SelectionSpace], rows: Tensor, anchors: Tensor) -> list[float]:
    """The smallest cosine similarity of an image of a class to its most similar anchor (1: all images covered).

    One number for each space; every image is read once. rows and anchors are row numbers of one class.
    """
    chosen, lowest = load(anchors), [float("inf")] * len(spaces)
    mine = [unit_features(chosen, space) for space in spaces]
    for part in rows.split(COVERED):
        images = load(part)
        here = [
            float((unit_features(images, space) @ m.T).amax(1).min()) for space, m in zip(spaces, mine, strict=True)
        ]
        lowest = [min(pair) for pair in zip(lowest, here, strict=True)]
    return lowest


def fingerprints(contents: Iterable[bytes]) -> Tensor:
    """63-bit hashes of the images' bytes, [n] int64; different images practically never have equal hashes."""
    numbers = [int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "big") >> 1 for image in contents]
    return torch.tensor(numbers, dtype=torch.int64)


def shared_between_classes(prints: Tensor, labels: Tensor) -> Tensor:
    """[n] bool: rows whose image also occurs with another label; PD has no direction between two such anchors."""
    _, group = prints.unique(return_inverse=True)
    lowest = torch.full((int(group.max()) + 1,), 2**62).scatter_reduce_(0, group, labels.cpu(), "amin")
    highest = torch.zeros_like(lowest).scatter_reduce_(0, group, labels.cpu(), "amax")
    return (lowest != highest)[group]


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
