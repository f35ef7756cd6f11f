"""Attacks by name, and the ensemble behind a reported robust accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from foundations.errors import look_up
from threat_specification.attacks.apgd import apgd, apgd_over_targets
from threat_specification.attacks.base import Attack
from threat_specification.attacks.estimated_gradient import estimated_gradient
from threat_specification.attacks.inscribed import l2_inscribed
from threat_specification.attacks.minimal_gauge import minimal_gauge
from threat_specification.attacks.pgd import momentum_pgd, pgd, post_hoc, targeted_pgd
from threat_specification.attacks.random_search import random_search
from threat_specification.safe_moves.space import single_moves

# `draw` is the number of an attack's first random field; attacks without common numbers have independent randomness.
ATTACKS: dict[str, Attack] = {
    "momentum_ce": partial(momentum_pgd, draw=1000, loss="ce", starts=("bright", "corner"), share=2.0),
    "momentum_dlr": partial(momentum_pgd, draw=1100, loss="dlr", starts=("corner", "smooth_corner")),
    "momentum_margin": partial(momentum_pgd, draw=1200, loss="margin", starts=("corner", "smooth_corner")),
    "momentum_targeted": partial(targeted_pgd, draw=1300, starts={"bright": 9}, share=0.5),
    "sign_targeted": partial(targeted_pgd, draw=1400, starts={"corner": 9}, share=0.5, direction="sign"),
    "apgd_ce": partial(apgd, draw=1, loss="ce"),
    "apgd_dlr": partial(apgd, draw=2, loss="dlr"),
    "apgd_margin": partial(apgd, draw=3, loss="margin"),
    "apgd_pm": partial(apgd, draw=4, loss="probability_margin"),
    "apgd_t_dlr": partial(apgd_over_targets, draw=20),
    "momentum_bright": partial(momentum_pgd, draw=1500, loss="ce", starts=("bright",)),
    "momentum_corner": partial(momentum_pgd, draw=1600, loss="margin", starts=("corner",)),
    "momentum_pm": partial(momentum_pgd, draw=1700, loss="probability_margin", starts=("corner",), share=2.0),
    "momentum_likeliest": partial(targeted_pgd, draw=1800, starts={"bright": 3}, share=0.5),
    "apgd_pm_corner": partial(apgd, draw=8, loss="probability_margin", start="corner"),
    "l2_inscribed": l2_inscribed,
    "minimal_gauge": minimal_gauge,
    "random_search": partial(random_search, draw=10_000),
    "estimated_gradient": partial(estimated_gradient, draw=1_000_000),
    "single_moves": single_moves,
    "pgd": partial(pgd, draw=5),
    "post_hoc": partial(post_hoc, draw=7),
}


def pd_auto(num_classes: int) -> list[str]:
    """Names of the ensemble's attacks; cheap attacks that often succeed come first. DLR needs 3 classes."""
    second = "momentum_dlr" if num_classes > 2 else "momentum_margin"
    with_gradients = ["momentum_ce", second, "momentum_targeted", "sign_targeted", "apgd_ce", "minimal_gauge"]
    return [*with_gradients, "random_search", "estimated_gradient"]


def lean(num_classes: int) -> list[str]:
    """Names of attacks that take three fifths of the ensemble's passes for the same accuracy (docs/results.md)."""
    with_gradients = ["momentum_bright", "apgd_pm_corner", "momentum_likeliest", "apgd_pm"]
    return [*with_gradients, "momentum_corner", "momentum_pm", "minimal_gauge", "random_search", "estimated_gradient"]


# Names that stand for several attacks -> number of classes -> their names.
ENSEMBLES: dict[str, Callable[[int], list[str]]] = {"standard": pd_auto, "lean": lean}


def attacks_named(names: Sequence[str], num_classes: int) -> dict[str, Attack]:
    """The attacks of these names, in this order, and those of ensembles in their place; without names the standard one.

    Raises UsageError for unknown names.
    """
    found: dict[str, Attack] = {}
    for name in names or ["standard"]:
        chosen = look_up({**ATTACKS, **ENSEMBLES}, name, "attack")
        found |= {member: ATTACKS[member] for member in chosen(num_classes)} if name in ENSEMBLES else {name: chosen}
    return found
