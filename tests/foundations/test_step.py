from __future__ import annotations

import pytest

from foundations.errors import UsageError
from foundations.step import iterations


def test_both_units_become_iterations() -> None:
    assert iterations("3ep", 31) == 93
    assert iterations("5000it", 31) == 5000
    assert iterations("0ep", 31) == 0


@pytest.mark.parametrize("text", ["", "3", "ep", "3 ep", "-3ep", "3.5ep", "3epochs"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="40ep or 5000it"):
        iterations(text, 10)
