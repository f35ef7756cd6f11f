from __future__ import annotations

import pytest
import torch

from foundations.errors import UsageError
from foundations.hparams import ThreatHparams
from threat_specification.selection import (
    SELECTIONS,
    coverage,
    farthest_first,
    greedy_subsets,
    select,
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


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_greedy_subsets_take_from_both_halves(count: int) -> None:
    images = torch.rand(20, 1, 3, 3)
    picks = greedy_subsets(images, count, 10, torch.Generator().manual_seed(1))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    first = set(order[:10].tolist())
    assert len(picks.unique()) == count
    assert sum(int(row) in first for row in picks) == count - count // 2


def test_candidates_are_cut() -> None:
    images = torch.rand(200, 1, 3, 3)
    picks = greedy_subsets(images, 4, 3, torch.Generator().manual_seed(1))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert set(picks.tolist()) <= set(order[:6].tolist()) | set(order[100:106].tolist())


@pytest.mark.parametrize("method", SELECTIONS)
def test_select_takes_as_many_of_each_class_and_repeats(method: str) -> None:
    images = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8)
    labels = torch.arange(60) % 3
    allowed = torch.ones(60, dtype=torch.bool)
    allowed[:30] = False
    rows = select(images, labels, method, 4, 10, seed=7, allowed=allowed)
    assert labels[rows].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(rows.unique()) == 12
    assert int(rows.min()) >= 30
    assert rows.equal(select(images, labels, method, 4, 10, seed=7, allowed=allowed))
    assert not rows.equal(select(images, labels, method, 4, 10, seed=8, allowed=allowed))


def test_too_many_are_refused() -> None:
    images, labels = torch.zeros(6, 1, 2, 2), torch.tensor([0, 0, 0, 1, 1, 1])
    with pytest.raises(UsageError, match="--per_label: expected at most 3, the images of class 0, got 4"):
        select(images, labels, "random", 4, 10, 0, torch.ones(6, dtype=torch.bool))


def test_hparams_know_the_registry() -> None:
    for name in SELECTIONS:
        ThreatHparams(selection=name)
    with pytest.raises(UsageError, match=", ".join(SELECTIONS)):
        ThreatHparams(selection="other")


def test_images_of_two_classes_are_found() -> None:
    images = torch.tensor([1, 2, 1, 3, 2, 4], dtype=torch.uint8).view(6, 1, 1, 1)
    labels = torch.tensor([0, 0, 1, 1, 0, 2])
    assert shared_between_classes(images, labels).tolist() == [True, False, True, False, False, False]


def test_coverage_is_the_worst_best_similarity() -> None:
    images = torch.rand(30, 1, 3, 3)
    labels = torch.arange(30) % 2
    anchors = torch.tensor([0, 2, 1])
    flat = images.flatten(1).double()
    expected = []
    for label in (0, 1):
        mine = [j for j in anchors.tolist() if labels[j] == label]
        best = [
            max(float(flat[i] @ flat[j] / flat[i].norm() / flat[j].norm()) for j in mine)
            for i in range(30)
            if labels[i] == label
        ]
        expected.append(min(best))
    assert coverage(images, labels, anchors) == pytest.approx(expected, abs=1e-6)
