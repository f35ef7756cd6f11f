"""AUROC against people's answers: scikit-learn's, of every resample too; pairs of one image count together."""

from __future__ import annotations

import numpy
import pytest
from sklearn.metrics import roc_auc_score

from testing.judged import clustered_auroc
from testing.separation import Bootstrap


def made(images: int, each: int, seed: int = 0) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Values with ties, answers that lean on them, and the image of each pair."""
    generator = numpy.random.default_rng(seed)
    values = generator.integers(0, 12, images * each) / 8
    answers = values + generator.normal(0, 1, len(values)) > 1
    return values, answers, numpy.repeat(numpy.arange(images), each)


def test_the_figure_and_its_resamples_are_those_of_scikit_learn() -> None:
    values, answers, images = made(30, 3)
    bootstrap = Bootstrap.over(30, 200, 1)
    found = clustered_auroc(values, answers, images, bootstrap)
    assert found is not None and found.auroc == pytest.approx(roc_auc_score(answers, values), abs=1e-12)
    resampled = [roc_auc_score(answers, values, sample_weight=drawn[images]) for drawn in bootstrap.counts]
    expected = bootstrap.interval(found.auroc, numpy.array(resampled))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_pair_told_four_times_says_no_more() -> None:
    values, answers, images = made(40, 1)
    once = clustered_auroc(values, answers, images, Bootstrap.over(40, 300, 2))
    four = clustered_auroc(*(numpy.repeat(rows, 4) for rows in (values, answers, images)), Bootstrap.over(40, 300, 2))
    assert once is not None and four is not None
    assert (four.auroc, four.low, four.high) == pytest.approx((once.auroc, once.low, once.high), abs=1e-9)


def test_values_that_differ_by_rounding_are_ties() -> None:
    answers = numpy.arange(20) % 3 == 0
    noise = numpy.where(answers, 1e-8, -1e-8)
    found = clustered_auroc(77 / 255 + noise, answers, numpy.arange(20), Bootstrap.over(20, 100, 0))
    assert found is not None and (found.auroc, found.low, found.high) == (0.5, 0.5, 0.5)


def test_within_groups_only_pairs_of_one_group_are_compared() -> None:
    """A shift of a whole group changes nothing, and the figure is the mean over groups, by their comparisons."""
    values, answers, images = made(30, 2)
    groups = numpy.arange(60) % 2
    bootstrap = Bootstrap.over(30, 100, 3)
    found = clustered_auroc(values, answers, images, bootstrap, groups)
    assert found == clustered_auroc(values + 100 * groups, answers, images, bootstrap, groups)
    parts = [(answers[groups == g], values[groups == g]) for g in (0, 1)]
    weights = [a.sum() * (~a).sum() for a, _ in parts]
    assert found is not None
    assert found.auroc == pytest.approx(numpy.average([roc_auc_score(*part) for part in parts], weights=weights))


def test_without_two_answers_there_is_no_figure() -> None:
    values, _, images = made(5, 1)
    bootstrap = Bootstrap.over(5, 100, 0)
    assert clustered_auroc(values, numpy.ones(5, bool), images, bootstrap) is None
    assert clustered_auroc(values, numpy.zeros(5, bool), images, bootstrap) is None
    assert clustered_auroc(values, numpy.arange(5) < 2, images, bootstrap, numpy.arange(5) < 2) is None
