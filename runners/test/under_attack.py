"""The evaluations under attack that the flags of `test` describe: in an l_p ball, and in a nonisotropic set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from foundations.modes import ExpectationOverTransformation
from foundations.testing_hparams import TestingHparams
from runners.checks import names_in
from testing.autoattack import autoattack, members_for
from testing.evaluations import BALL_COLUMNS, AttackEvaluation
from testing.foreign import read_foreign, together
from threat_specification.attacks.base import Attack
from threat_specification.attacks.registry import attacks_named
from threat_specification.attacks.search import Cell
from threat_specification.base import Threat
from threat_specification.registry import norm

PGD_STEPS = 40  # steps of this project's own attacks in an l_p ball


def _library(testing: TestingHparams, power: float, num_classes: int) -> dict[str, Attack]:
    names = members_for(testing.adv_test_attack_type, num_classes)
    return autoattack(testing.adv_test_attack_norm, power, names, num_classes)


def _own(testing: TestingHparams, power: float, num_classes: int) -> dict[str, Attack]:
    return attacks_named(["pgd"], num_classes)


# --adv_test_attack_type -> attacks in an l_p ball
BALL_ATTACKS: dict[str, Callable[[TestingHparams, float, int], dict[str, Attack]]] = {
    "auto": _library,
    "apgd": _library,
    "pgd": _own,
}


def in_ball(
    testing: TestingHparams, model: nn.Module, num_classes: int, seed: int, measures: Mapping[str, Any]
) -> AttackEvaluation:
    """The evaluation of --adv_eval; `measures` as in AttackEvaluation."""
    threat, power = norm(testing.adv_test_attack_norm), testing.ball_power
    attacks = BALL_ATTACKS[testing.adv_test_attack_type](testing, power, num_classes)
    # No pixel changes by more than the l2 norm of the perturbation.
    ball, measured = Cell(power, power), dict(measures)
    return AttackEvaluation(
        model, threat, ball, attacks, PGD_STEPS, seed, measures=measured, prefix="adv", kept=BALL_COLUMNS
    )


def inside(
    testing: TestingHparams, model: nn.Module, threat: Threat, num_classes: int, seed: int, measures: Mapping[str, Any]
) -> AttackEvaluation:
    """The evaluation of --N_adv_eval; `measures` as in AttackEvaluation."""
    own = attacks_named(names_in(testing.attacks), num_classes)
    return AttackEvaluation(
        model if testing.eot == 1 else ExpectationOverTransformation(model, testing.eot),
        threat,
        Cell(testing.N_threshold, testing.N_radius),
        together(own, read_foreign(testing.foreign_attacks)),
        testing.N_attack_iter,
        seed,
        grid(testing.N_threshold, testing.N_radius, testing.N_thresholds, testing.N_radii),
        dict(measures),
        keep_all=testing.save_adversarials,
    )


def grid(threshold: float, radius: float, thresholds: tuple[float, ...], radii: tuple[float, ...]) -> list[Cell]:
    """Cells of every threshold with every radius, each bound alone, and the pixel box alone.

    Without a grid, the radius alone: beside the headline it shows whether the threshold matters.
    """
    if not thresholds and not radii:
        return [Cell(math.inf, radius)]
    rows, columns = {threshold, *thresholds}, {radius, *radii}
    return [Cell(t, r) for t in (*rows, math.inf) for r in (*columns, math.inf)]
