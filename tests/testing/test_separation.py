"""AUROCs and intervals against scikit-learn, brute force and closed forms."""

from __future__ import annotations

import numpy
import pytest
from sklearn.metrics import roc_auc_score

from testing.separation import Bootstrap, Placements, matched_pairs, rising

RANDOM = numpy.random.default_rng(3)


def sample(images: int, columns: int, shift: float) -> numpy.ndarray:
    return numpy.round(RANDOM.normal(shift, 1, (images, columns)), 1)  # rounded: ties


def by_sklearn(safe: numpy.ndarray, unsafe: numpy.ndarray) -> float:
    unsafe = unsafe[~numpy.isnan(unsafe)]
    return roc_auc_score([0] * len(safe) + [1] * len(unsafe), numpy.concatenate((safe, unsafe)))


def test_auroc_is_scikit_learns_averaged_over_columns() -> None:
    safe, unsafe = sample(40, 3, 0), sample(40, 2, 0.7)
    unsafe[:15, 1] = numpy.nan
    parts = [Placements.of(column, unsafe) for column in safe.T]
    expected = numpy.mean([[by_sklearn(s, u) for u in unsafe.T] for s in safe.T])
    assert Placements.mean(parts).auroc == pytest.approx(expected, abs=1e-12)


def test_perfect_and_no_separation() -> None:
    low, high = numpy.zeros(20), numpy.ones((20, 1))
    bootstrap = Bootstrap.over(20, 200, 0)
    # No resample differs: the interval is that of 20 successes in 20, from n / (n + z^2) on (Wilson).
    assert vars(Placements.of(low, high).interval(bootstrap)) == pytest.approx({"auroc": 1, "low": 0.838875, "high": 1})
    assert vars(Placements.of(low + 2, high).interval(bootstrap)) == pytest.approx(
        {"auroc": 0, "low": 0, "high": 0.161125}, abs=1e-6
    )
    assert Placements.of(low, high * 0).auroc == 0.5
    assert Placements.of(low + 2, high).auroc == 0


def test_the_interval_is_that_of_resampled_images() -> None:
    """To first order: against 400 resamples done one by one, images with their pair of values."""
    shared = RANDOM.normal(0, 1, 300)
    safe, unsafe = shared + RANDOM.normal(0, 1, 300), shared + RANDOM.normal(0.8, 1, 300)
    bootstrap = Bootstrap.over(300, 400, 1)
    found = Placements.of(safe, unsafe[:, None]).interval(bootstrap)
    brute = []
    for counts in bootstrap.counts.astype(int):
        rows = numpy.repeat(numpy.arange(300), counts)
        brute.append(by_sklearn(safe[rows], unsafe[rows]))
    low, high = numpy.quantile(brute, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.003)
    assert found.low < found.auroc < found.high


@pytest.mark.parametrize("ahead", [1.9, 2.5, 3.5, -2.5])
def test_intervals_stay_within_0_and_1(ahead: float) -> None:
    """Twelve images, nearly separated: a few values in the wrong order."""
    generator = numpy.random.default_rng(3)
    safe, unsafe = generator.normal(0, 1, 12), generator.normal(ahead, 1, (12, 1))
    found = Placements.of(safe, unsafe).interval(Bootstrap.over(12, 500, 2))
    assert 0 <= found.low <= found.auroc <= found.high <= 1
    assert found.low < found.high or found.auroc in (0, 1)


def test_an_unsafe_column_that_few_images_have_gets_a_wide_interval() -> None:
    safe, unsafe = sample(200, 1, 0)[:, 0], sample(200, 1, 0.5)
    few = unsafe.copy()
    few[10:] = numpy.nan
    bootstrap = Bootstrap.over(200, 300, 1)
    narrow, wide = (Placements.of(safe, values).interval(bootstrap) for values in (unsafe, few))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_matched_pairs_by_loops() -> None:
    lengths = numpy.abs(sample(25, 5, 3))
    lengths[0] = 0
    threats = {"T": sample(25, 5, 0)}
    safe, unsafe = [0, 1, 4], [2, 3]
    won, pairs = 0.0, 0
    for image in range(25):
        for s in safe:
            for u in unsafe:
                a, b = lengths[image, s], lengths[image, u]
                if max(a, b) > 0 and abs(a - b) <= 0.1 * max(a, b):
                    pairs += 1
                    difference = threats["T"][image, u] - threats["T"][image, s]
                    won += 1 if difference > 0 else 0.5 * (difference == 0)
    found, number = matched_pairs(threats, lengths, safe, unsafe, Bootstrap.over(25, 100, 0))
    assert number == pairs > 10
    assert found["T"].auroc == pytest.approx(won / pairs)
    assert found["T"].low <= found["T"].auroc <= found["T"].high


def test_rising() -> None:
    up = numpy.tile([1.0, 2, 3], (5, 1))
    assert rising([1, 2, 3], up) == {"means_rise": True, "rank_correlation": 1.0}
    assert rising([1, 2, 3], -up) == {"means_rise": False, "rank_correlation": -1.0}
    assert rising([1, 2, 3], numpy.zeros((5, 3)))["rank_correlation"] == 0
