"""Thresholds by coverage against counting one by one."""

from __future__ import annotations

import numpy
import pytest
import torch

from foundations.errors import UsageError
from testing.coverage import (
    curve,
    held,
    held_per_image,
    resampled_thresholds,
    threshold_at,
    threshold_at_coverage,
)


def test_the_smallest_threshold_that_holds_the_share() -> None:
    values = numpy.random.default_rng(0).exponential(size=(20, 5)).astype(numpy.float32)
    values[3, 2] = numpy.nan
    known = sorted(float(v) for v in values.ravel() if v == v)
    for share in (0.0, 0.01, 0.5, 0.95, 1.0):
        threshold = threshold_at(values, share)
        inside = sum(v <= threshold for v in known)
        assert inside >= share * len(known) and threshold in known
        smaller = [v for v in known if v < threshold]
        assert not smaller or sum(v <= smaller[-1] for v in known) < share * len(known)


def test_95_of_100_are_95() -> None:
    """0.95 * 100 is 95.00000000000001 in float64 for some sizes: no value more than needed."""
    for count in (20, 40, 100, 1000, 2000):
        assert threshold_at(numpy.arange(1, count + 1), 0.95) == round(0.95 * count)


def test_thresholds_of_resamples_are_those_of_the_images_drawn() -> None:
    generator = numpy.random.default_rng(1)
    values = generator.exponential(size=(9, 4)).round(1)  # with ties
    values[2, 1] = values[5] = numpy.nan
    counts = generator.multinomial(9, numpy.full(9, 1 / 9), size=30).astype(numpy.float64)
    found = resampled_thresholds(values, (0.0, 0.5, 0.95, 1.0), counts)
    for of, row in zip(counts, found, strict=True):
        drawn = numpy.repeat(values, of.astype(int), axis=0)
        assert row.tolist() == [threshold_at(drawn, level) for level in (0.0, 0.5, 0.95, 1.0)]


def test_shares_do_not_count_what_is_not_there() -> None:
    values = numpy.array([[1.0, numpy.nan], [3.0, 1.0], [2.0, numpy.nan]])
    assert held(values, 2) == 3 / 4
    assert held_per_image(values, 2).tolist() == [1.0, 0.5, 1.0]
    assert numpy.isnan(held(numpy.array([numpy.nan]), 1))


def test_a_threat_that_separates_holds_no_unsafe_change() -> None:
    safe, unsafe = numpy.linspace(0, 1, 100), numpy.linspace(1.5, 2, 50)
    thresholds, shares = curve(safe, unsafe, (0.5, 0.95, 1.0))
    assert shares == [0, 0, 0] and thresholds == pytest.approx([49 / 99, 94 / 99, 1])
    assert curve(safe, safe, (0.5,))[1] == [0.5]


def test_a_threshold_of_tensors_and_what_is_refused() -> None:
    values = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
    values[1, 2] = torch.nan
    assert threshold_at_coverage(values) == threshold_at(values.numpy(), 0.95)
    assert threshold_at_coverage(values.tolist(), 0.5) == threshold_at(values.numpy(), 0.5)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="coverage: expected a finite number from 0 to 1"):
            threshold_at_coverage(values, wrong)
    for nothing in ([], torch.full((2, 2), torch.nan)):
        with pytest.raises(UsageError, match="threats: expected at least one"):
            threshold_at_coverage(nothing)
    for none in (None, ["a"], {"PD": [1.0]}, [[1.0, 2.0], [3.0]]):
        with pytest.raises(UsageError, match="threats: expected a tensor, an array or a list of numbers"):
            threshold_at_coverage(none)
