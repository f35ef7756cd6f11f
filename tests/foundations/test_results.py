from __future__ import annotations

import pytest
from scipy.stats import binomtest

from foundations.results import markdown_table, wilson_interval


@pytest.mark.parametrize(("right", "count"), [(0, 10), (5, 10), (978, 1000), (200, 200), (1, 3)])
def test_interval_agrees_with_scipy(right: int, count: int) -> None:
    reference = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx((reference.low, reference.high), abs=1e-6)


def test_no_examples_say_nothing() -> None:
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


def test_tables_line_up() -> None:
    lines = markdown_table(["a", "bb"], [["ccc", "d"]]).splitlines()
    assert lines == ["| a   | bb |", "| --- | -- |", "| ccc | d  |"]
