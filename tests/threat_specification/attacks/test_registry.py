"""Attacks and ensembles by their names."""

from __future__ import annotations

import pytest

from foundations.errors import UsageError
from threat_specification.attacks.registry import ENSEMBLES, attacks_named, pd_auto


def test_the_ensemble_fits_the_number_of_classes() -> None:
    assert [pd_auto(k)[1] for k in (2, 3, 10)] == ["momentum_margin", "momentum_dlr", "momentum_dlr"]


def test_an_ensemble_by_its_name_stands_for_its_attacks() -> None:
    assert list(attacks_named([], 10)) == list(attacks_named(["standard"], 10)) == pd_auto(10)
    members = list(attacks_named(["pgd", "lean", "apgd_pm"], 10))
    assert members[0] == "pgd" and members[1:] == list(attacks_named(["lean"], 10)) and "apgd_pm" in members
    for names in (members, pd_auto(10)):  # searches without gradients tell masked gradients
        assert {"random_search", "estimated_gradient"} <= set(names)
    with pytest.raises(UsageError, match="did you mean 'lean'"):
        attacks_named(["leann"], 10)


def test_ensembles_have_attacks_of_their_own_random_numbers() -> None:
    """Two members with one draw would begin at the same points."""
    for names in ENSEMBLES.values():
        draws = [
            attack.keywords["draw"] for attack in attacks_named(names(10), 10).values() if hasattr(attack, "keywords")
        ]
        assert len(set(draws)) == len(draws) >= 6
