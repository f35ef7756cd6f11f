"""`make mutants` changes what it says it changes."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS
from tests.mutants.mutant import PROJECT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_once_and_its_tests_exist(mutant: Mutant) -> None:
    assert (PROJECT / mutant.file).read_text().count(mutant.before) == 1
    assert mutant.after != mutant.before
    for word in mutant.tests.split():
        assert word == "-k" or ("." not in word and "/" not in word) or (PROJECT / word).exists()


def test_there_are_enough() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 25
