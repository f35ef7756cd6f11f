"""Attacks and ensembles by their names."""

from __future__ import annotations

import pytest
import torch

from foundations.errors import UsageError
from runners.test.desc import ENSEMBLE
from tests.threat_specification.attacks.linear import problem
from threat_specification import Linf
from threat_specification.attacks.registry import ENSEMBLES, attacks_named, pd_auto
from threat_specification.attacks.search import Cell, Search


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


def test_no_member_of_an_ensemble_is_lost() -> None:
    """Fewer members make figures higher without a word: whoever changes these lists also increases ENSEMBLE."""
    gradients = "momentum_bright apgd_pm_corner momentum_likeliest apgd_pm momentum_corner momentum_pm minimal_gauge"
    members = {
        "lean": f"{gradients} random_search estimated_gradient",
        "standard": "momentum_ce momentum_dlr momentum_targeted sign_targeted apgd_ce minimal_gauge random_search "
        "estimated_gradient",
    }
    assert {name: " ".join(names(10)) for name, names in ENSEMBLES.items()} == members
    assert ENSEMBLE == 4


def test_lean_takes_three_fifths_of_the_passes_where_all_stand() -> None:
    model, _, images, labels = problem(10, 3, seed=10)
    cell, passes = Cell(1e-3, 1e-3), {}
    for name in ENSEMBLES:
        found = Search(model, Linf().bind(images, labels), labels, torch.arange(3), cell, 40, seed=0)
        found.attack(cell, attacks_named([name], 10))
        assert bool(found.robust(cell).all())
        passes[name] = int(found.forwards.sum() + found.backwards.sum())
    assert 0.5 < passes["lean"] / passes["standard"] < 0.6


def test_ensembles_have_attacks_of_their_own_random_numbers() -> None:
    """Two members with one draw would begin at the same points."""
    for names in ENSEMBLES.values():
        draws = [
            attack.keywords["draw"] for attack in attacks_named(names(10), 10).values() if hasattr(attack, "keywords")
        ]
        assert len(set(draws)) == len(draws) >= 6
