from __future__ import annotations

from itertools import combinations

import pytest
import torch

from foundations.errors import UsageError
from foundations.hparams import ThreatHparams
from threat_specification.projected_displacement.anchor_selection import (
    SELECTIONS,
    Load,
    coverage,
    farthest_first,
    fingerprints,
    greedy_subsets,
    select_class,
    shared_between_classes,
)


def slow_farthest_first(features: torch.Tensor, count: int) -> list[int]:
    """All similarities anew for every pick, in float64."""
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    picks = [0]
    while len(picks) < count:
        similarity = [(max(float(unit[i] @ unit[j]) for j in picks), i) for i in range(len(unit)) if i not in picks]
        picks.append(min(similarity)[1])
    return picks


@pytest.mark.parametrize("seed", range(5))
def test_farthest_first_against_similarities_computed_anew(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(40, 12, generator=generator)
    assert farthest_first(features, 15).tolist() == slow_farthest_first(features, 15)


def test_ties_go_to_the_smaller_row() -> None:
    features = torch.eye(4)[[0, 1, 1, 2, 3]]
    assert farthest_first(features, 4).tolist() == [0, 1, 3, 4]


def test_all_rows_can_be_picked_and_none_twice() -> None:
    features = torch.rand(9, 3)
    assert sorted(farthest_first(features, 9).tolist()) == list(range(9))


def loader(images: torch.Tensor, seen: list[int] | None = None) -> Load:
    def load(rows: torch.Tensor) -> torch.Tensor:
        if seen is not None:
            seen.extend(rows.tolist())
        return images[rows]

    return load


ROWS = torch.arange(20) + 5


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_greedy_subsets_take_from_both_halves(count: int) -> None:
    picks = greedy_subsets(loader(torch.rand(25, 1, 3, 3)), ROWS, count, 10, seed=1)
    order = ROWS[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    first = set(order[:10].tolist())
    assert len(picks.unique()) == count
    assert [int(row) in first for row in picks] == [True] * (count - count // 2) + [False] * (count // 2)


def test_only_candidates_are_read() -> None:
    seen: list[int] = []
    picks = greedy_subsets(loader(torch.rand(200, 1, 3, 3), seen), torch.arange(200), 4, 3, seed=1)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert set(seen) == set(order[:6].tolist()) | set(order[100:106].tolist())
    assert set(picks.tolist()) <= set(seen)


@pytest.mark.parametrize("method", SELECTIONS)
def test_select_class_takes_distinct_rows_of_it_and_repeats(method: str) -> None:
    load = loader(torch.randint(0, 256, (25, 1, 4, 4), dtype=torch.uint8))
    rows = select_class(load, ROWS, 3, method, 4, 10, seed=7)
    assert len(rows.unique()) == 4
    assert set(rows.tolist()) <= set(ROWS.tolist())
    assert rows.equal(select_class(load, ROWS, 3, method, 4, 10, seed=7))
    other = [select_class(load, ROWS, label, method, 4, 10, seed) for label, seed in ((3, 8), (4, 7))]
    assert not all(rows.equal(o) for o in other)


def test_kmeans_takes_an_image_near_each_cluster() -> None:
    centres = torch.rand(3, 1, 4, 4)
    images = (centres[torch.arange(30) % 3] + 0.01 * torch.rand(30, 1, 4, 4)).clamp(0, 1)
    picks = select_class(loader(images), torch.arange(30), 0, "kmeans", 3, 10, seed=0)
    assert sorted((picks % 3).tolist()) == [0, 1, 2]


def test_too_many_are_refused() -> None:
    with pytest.raises(UsageError, match="--per_label: expected at most 20, the images of class 0, got 21"):
        select_class(loader(torch.rand(25, 1, 2, 2)), ROWS, 0, "random", 21, 10, 0)


def test_hparams_know_the_registry() -> None:
    for name in SELECTIONS:
        ThreatHparams(selection=name)
    with pytest.raises(UsageError, match=", ".join(SELECTIONS)):
        ThreatHparams(selection="other")


def test_images_of_two_classes_are_found() -> None:
    images = torch.tensor([1, 2, 1, 3, 2, 4], dtype=torch.uint8).view(6, 1, 1, 1)
    labels = torch.tensor([0, 0, 1, 1, 0, 2])
    prints = fingerprints(image.numpy().tobytes() for image in images)
    assert shared_between_classes(prints, labels).tolist() == [True, False, True, False, False, False]
    assert len(prints.unique()) == 4


def test_coverage_is_the_worst_best_similarity() -> None:
    images = torch.rand(30, 1, 3, 3)
    anchors = torch.tensor([0, 7, 12])
    flat = images.flatten(1).double()
    best = [
        max(float(flat[i] @ flat[j] / flat[i].norm() / flat[j].norm()) for j in anchors.tolist()) for i in range(20)
    ]
    assert coverage(loader(images), torch.arange(20), anchors) == pytest.approx(min(best), abs=1e-6)


def test_k_center_covers_within_twice_the_smallest_radius() -> None:
    """Against all choices of centres, on a small class with equal images; distinct picks, the same for a seed."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (9, 1, 2, 3), generator=generator, dtype=torch.uint8)
    images[7:] = images[0]
    rows = torch.arange(9)
    points = images.flatten(1).double()
    distances = torch.cdist(points, points)
    for count in (1, 2, 3, 8):
        best = min(float(distances[:, list(chosen)].amin(1).max()) for chosen in combinations(range(9), count))
        for seed in range(5):
            picks = SELECTIONS["k_center"](lambda index: images[index], rows, count, 1, seed)
            assert len(picks.unique()) == count
            assert float(distances[:, picks].amin(1).max()) <= 2 * best + 1e-9
            assert torch.equal(picks, SELECTIONS["k_center"](lambda index: images[index], rows, count, 1, seed))
