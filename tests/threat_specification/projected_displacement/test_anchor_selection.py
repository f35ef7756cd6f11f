from __future__ import annotations

from itertools import combinations

import pytest
import torch

from foundations.errors import UsageError
from foundations.input_hparams import ThreatHparams
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
from threat_specification.projected_displacement.selection_space import RAW, SelectionSpace


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
    picks = greedy_subsets(loader(torch.rand(25, 1, 3, 3)), RAW, ROWS, count, 10, seed=1)
    order = ROWS[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    first = set(order[:10].tolist())
    assert len(picks.unique()) == count
    assert [int(row) in first for row in picks] == [True] * (count - count // 2) + [False] * (count // 2)


def test_only_candidates_are_read() -> None:
    seen: list[int] = []
    picks = greedy_subsets(loader(torch.rand(200, 1, 3, 3), seen), RAW, torch.arange(200), 4, 3, seed=1)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert set(seen) == set(order[:6].tolist()) | set(order[100:106].tolist())
    assert set(picks.tolist()) <= set(seen)


@pytest.mark.parametrize("method", SELECTIONS)
def test_select_class_takes_distinct_rows_of_it_and_repeats(method: str) -> None:
    load = loader(torch.randint(0, 256, (25, 1, 4, 4), dtype=torch.uint8))
    rows = select_class(load, RAW, ROWS, 3, method, 4, 10, seed=7)
    assert len(rows.unique()) == 4
    assert set(rows.tolist()) <= set(ROWS.tolist())
    assert rows.equal(select_class(load, RAW, ROWS, 3, method, 4, 10, seed=7))
    other = [select_class(load, RAW, ROWS, label, method, 4, 10, seed) for label, seed in ((3, 8), (4, 7))]
    assert not all(rows.equal(o) for o in other)


def test_kmeans_takes_an_image_near_each_cluster() -> None:
    centres = torch.rand(3, 1, 4, 4)
    images = (centres[torch.arange(30) % 3] + 0.01 * torch.rand(30, 1, 4, 4)).clamp(0, 1)
    picks = select_class(loader(images), RAW, torch.arange(30), 0, "kmeans", 3, 10, seed=0)
    assert sorted((picks % 3).tolist()) == [0, 1, 2]


def test_too_many_are_refused() -> None:
    with pytest.raises(UsageError, match="--per_label: expected at most 20, the images of class 0, got 21"):
        select_class(loader(torch.rand(25, 1, 2, 2)), RAW, ROWS, 0, "random", 21, 10, 0)


def test_hparams_know_the_registry() -> None:
    for name in SELECTIONS:
        ThreatHparams(selection=name)
    with pytest.raises(UsageError, match=", ".join(SELECTIONS)):
        ThreatHparams(selection="other")
    with pytest.raises(UsageError, match="--selection_space: expected one of normalised, raw, got other"):
        ThreatHparams(selection_space="other")


def test_images_of_two_classes_are_found() -> None:
    images = torch.tensor([1, 2, 1, 3, 2, 4], dtype=torch.uint8).view(6, 1, 1, 1)
    labels = torch.tensor([0, 0, 1, 1, 0, 2])
    prints = fingerprints(image.numpy().tobytes() for image in images)
    assert shared_between_classes(prints, labels).tolist() == [True, False, True, False, False, False]
    assert len(prints.unique()) == 4


def slow_features(images: torch.Tensor, space: SelectionSpace) -> torch.Tensor:
    """(pixel - mean) / std, one value after the other, in float64."""
    pixels = images.double() / 255 if images.dtype == torch.uint8 else images.double()
    rows = [
        [
            (float(value) - space.mean[channel]) / space.std[channel]
            for channel in range(pixels.shape[1])
            for value in image[channel].flatten()
        ]
        for image in pixels
    ]
    return torch.tensor(rows, dtype=torch.float64)


# Bright, with one channel of small deviation: far from raw pixels.
COLOUR = SelectionSpace((0.7, 0.5, 0.9), (0.25, 0.3, 0.02))


def colour_images(count: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, 2, 3, generator=generator)
    mean, std = torch.tensor(COLOUR.mean).view(3, 1, 1), torch.tensor(COLOUR.std).view(3, 1, 1)
    images = (mean + std * noise).clamp(0, 1)
    return (images * 255).round().byte() if dtype == torch.uint8 else images


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("seed", range(3))
def test_greedy_subsets_in_a_normalised_space_against_loops(seed: int, dtype: torch.dtype) -> None:
    """Each half by all similarities anew in float64; another choice than of raw pixels."""
    images = colour_images(40, seed, dtype)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    expected = [
        int(half[pick])
        for half in order.tensor_split(2)
        for pick in slow_farthest_first(slow_features(images[half], COLOUR), 6)
    ]
    picks, raw = (greedy_subsets(loader(images), space, torch.arange(40), 12, 10, seed) for space in (COLOUR, RAW))
    assert picks.tolist() == expected
    assert len(set(picks.tolist()) & set(raw.tolist())) < 12


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_k_center_in_a_normalised_space_against_loops(dtype: torch.dtype) -> None:
    images = colour_images(30, 5, dtype)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    points = slow_features(images, COLOUR)[order]
    expected = [0]
    while len(expected) < 8:
        nearest = [min(float((point - points[pick]).square().sum()) for pick in expected) for point in points]
        expected.append(nearest.index(max(nearest)))
    picks, raw = (SELECTIONS["k_center"](loader(images), space, torch.arange(30), 8, 1, 2) for space in (COLOUR, RAW))
    assert picks.tolist() == order[expected].tolist() != raw.tolist()


def test_kmeans_finds_the_clusters_of_its_space() -> None:
    """Three clusters in a channel of small deviation, under wide noise in the other."""
    generator = torch.Generator().manual_seed(0)
    cluster = torch.arange(60) % 3
    narrow = (0.5 + 0.01 * (cluster - 1)).view(-1, 1, 1, 1).expand(60, 1, 2, 2)
    images = torch.cat([torch.rand(60, 1, 2, 2, generator=generator), narrow], 1)
    space = SelectionSpace((0.5, 0.5), (0.3, 0.0001))
    picks, raw = (select_class(loader(images), s, torch.arange(60), 0, "kmeans", 3, 20, seed=0) for s in (space, RAW))
    assert sorted((picks % 3).tolist()) == [0, 1, 2]
    assert not picks.equal(raw)


def test_random_is_the_same_in_every_space_and_reads_nothing() -> None:
    seen: list[int] = []
    load = loader(torch.rand(30, 3, 2, 2), seen)
    chosen = [select_class(load, space, ROWS, 0, "random", 6, 10, seed=3) for space in (RAW, COLOUR)]
    assert chosen[0].equal(chosen[1]) and seen == []


def test_raw_changes_no_bit_and_a_constant_channel_has_no_effect() -> None:
    # Pixels of 51 and 153, which are the means of the outer channels, would be 0 in the space.
    images = torch.randint(200, 256, (5, 3, 4, 4), dtype=torch.uint8)
    assert RAW.features(images).equal(images.flatten(1).float())
    constant = SelectionSpace((0.2, 0.5, 0.6), (0.1, 0.0, 0.2)).features(images).view(5, 3, 16)
    assert not constant[:, 1].any() and constant[:, [0, 2]].all()


def test_coverage_is_the_worst_best_similarity() -> None:
    """In each space, reading every image once."""
    seen: list[int] = []
    images, anchors = colour_images(30, 1, torch.uint8), torch.tensor([0, 7, 12])
    expected = []
    for features in (images.flatten(1).double(), slow_features(images, COLOUR)):
        unit = features / features.norm(dim=1, keepdim=True)
        expected.append(min(max(float(unit[i] @ unit[j]) for j in anchors.tolist()) for i in range(20)))
    found = coverage(loader(images, seen), [RAW, COLOUR], torch.arange(20), anchors)
    assert found == pytest.approx(expected, abs=1e-6)
    assert abs(found[0] - found[1]) > 0.1
    assert sorted(seen) == sorted([*range(20), *anchors.tolist()])


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
            picks = SELECTIONS["k_center"](lambda index: images[index], RAW, rows, count, 1, seed)
            assert len(picks.unique()) == count
            assert float(distances[:, picks].amin(1).max()) <= 2 * best + 1e-9
            assert torch.equal(picks, SELECTIONS["k_center"](lambda index: images[index], RAW, rows, count, 1, seed))
