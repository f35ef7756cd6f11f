from __future__ import annotations

import pytest

from foundations.errors import UsageError
from foundations.step import Step


def test_both_units_become_iterations() -> None:
    assert Step.parse("3ep", 31) == Step(93)
    assert Step.parse("5000it", 31) == Step(5000)
    assert Step.parse("0ep", 31) < Step.parse("1it", 31)


@pytest.mark.parametrize("text", ["", "3", "ep", "3 ep", "-3ep", "3.5ep", "3epochs"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="40ep or 5000it"):
        Step.parse(text, 10)
