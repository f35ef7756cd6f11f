from __future__ import annotations

import re
from pathlib import Path

import pytest
from scipy.stats import binomtest

from foundations.results import between, markdown_table, percent, rounded, wilson_interval, wilson_text


@pytest.mark.parametrize(("right", "count"), [(0, 10), (5, 10), (978, 1000), (200, 200), (1, 3)])
def test_interval_agrees_with_scipy(right: int, count: int) -> None:
    reference = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx((reference.low, reference.high), abs=1e-6)


def test_no_examples_say_nothing() -> None:
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


def test_tables_line_up() -> None:
    lines = markdown_table(["a", "bb"], [["ccc", "d"]]).splitlines()
    assert lines == ["| a   | bb |", "| --- | -- |", "| ccc | d  |"]


def test_a_figure_is_0_or_1_only_where_nothing_is_left_out() -> None:
    """1 image of 50,000 that is broken was shown as 1.0000, and 1 of 5,000 that is right as 0.000."""
    assert [rounded(value) for value in (0.0, 1.0, 0.5, 1 - 1 / 50_000, 1 / 50_000, 0.99994)] == [
        "0.0000", "1.0000", "0.5000", "0.99998", "0.00002", "0.9999"]  # fmt: skip
    assert [rounded(value, 3) for value in (1 / 5000, 1 - 2 / 5000, 1.0001, 2.0)] == [
        "0.0002",
        "0.9996",
        "1.0001",
        "2.000",
    ]
    assert [percent(value, 1) for value in (0.0, 1.0, 1 - 2 / 5000, 1 / 5000, 0.5)] == [
        "0.0%", "100.0%", "99.96%", "0.02%", "50.0%"]  # fmt: skip
    assert percent(0.002) == "0.2%" and percent(0.95) == "95%" and rounded(1e-300) == "0.0000"
    for count in range(1, 400):
        for right in (0, 1, count - 1, count):
            text = rounded(right / count, 2)
            assert (float(text) == 0) == (right == 0) and (float(text) == 1) == (right == count)


def test_intervals_end_at_0_and_1_for_none_and_all() -> None:
    for count in range(1, 2000, 7):
        assert wilson_interval(0.0, count)[0] == 0.0 and wilson_interval(1.0, count)[1] == 1.0
    assert wilson_text(1.0, 10) == "0.722-1.000" and between(0.0, 0.99999) == "[0.000, 0.99999]"


def test_no_table_rounds_a_share_in_its_own_way() -> None:
    """They pass `rounded` or `percent`. Differences and the bar of progress may round."""
    project = Path(__file__).resolve().parents[2]
    own = re.compile(r"(accuracy|auroc|share|held|optimality|correlation)\b[^{}+-]*:\.\d[f%]\}")
    files = [file for room in ("runners", "testing", "foundations") for file in (project / room).rglob("*.py")]
    found = {
        f"{file.name}: {line.strip()}" for file in files for line in file.read_text().splitlines() if own.search(line)
    }
    assert len(files) > 100 and not found
