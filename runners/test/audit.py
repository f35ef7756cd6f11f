"""The evaluation of `test --audit`: its attacks, its fields of result.json, and its chart."""

from __future__ import annotations

from typing import Any

import numpy
from matplotlib.figure import Figure

from runners.checks import names_in
from testing.audit import BUDGET, Audit, AuditEvaluation
from testing.evaluations import AttackEvaluation
from testing.foreign import together
from threat_specification.attacks.base import Attack
from threat_specification.attacks.registry import ATTACKS, attacks_named

NOT_ALONE = ("single_moves",)  # these work in the set of safe changes alone
ALL = "all"

Arrays = dict[str, numpy.ndarray]


def evaluation(attacked: AttackEvaluation, more: str, num_classes: int) -> AuditEvaluation:
    """The ensemble's attacks alone, and further ones (names, or `all`)."""
    names = [name for name in ATTACKS if name not in NOT_ALONE] if more == ALL else names_in(more)
    others: dict[str, Attack] = attacks_named(names, num_classes) if names else {}
    return AuditEvaluation(attacked, together(attacked.attacks, others))


def metrics(evaluation: AuditEvaluation, arrays: Arrays) -> dict[str, Any]:
    """The fields of result.json.

    best      share that nothing is known to break: no attack alone, not the ensemble, and not the exact answer
    attacks   for each: accuracy alone, that minus `best`, passes for an image, optimality at `budget` passes, images
              that it alone breaks among the members
    in_turn   for the ensemble in its order, and for the order by gain: accuracy and passes after each attack
    """
    audit, members = Audit.of(evaluation, arrays), list(evaluation.attacked.attacks)
    known = arrays["N_adv_correct"] & ~audit.broken[:, :, audit.headline].any(1)
    known &= ~arrays.get("exact_broken", numpy.zeros(len(known), bool))
    best, budget = float(known.mean()), BUDGET * evaluation.attacked.steps
    optimality, passes = audit.optimality(budget), audit.passes[audit.right, :, audit.headline]
    attacks = {
        name: {
            "accuracy": float(audit.accuracy(name)[audit.headline]),
            "above_best": float(audit.accuracy(name)[audit.headline]) - best,
            "passes": float(passes[:, number].mean()) if len(passes) else 0.0,
            "optimality": optimality[name],
            "only": audit.only(name, list(dict.fromkeys([*members, name]))),
            "member": name in members,
        }
        for number, name in enumerate(audit.names)
    }
    orders = {"ensemble": members, "by_gain": audit.by_gain(audit.names)}
    return {
        "clean": float(audit.right.mean()),
        "best": best,
        "is_exact": "exact_broken" in arrays and bool((arrays["exact_by"] != 0).all()),
        "budget": budget,
        "cells": [cell.describe() for cell in evaluation.cells],
        "attacks": attacks,
        "in_turn": {
            order: [
                {"attack": name, "accuracy": accuracy, "passes": spent}
                for name, (accuracy, spent) in zip(names, audit.in_turn(names), strict=True)
            ]
            for order, names in orders.items()
        },
    }


def audit_chart(evaluation: AuditEvaluation, arrays: Arrays, best: float) -> Figure:
    """Accuracy left after a number of passes for each image: every attack alone, and the best that is known."""
    audit = Audit.of(evaluation, arrays)
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.add_subplot()
    members = set(evaluation.attacked.attacks)
    for number, name in enumerate(audit.names):
        spent = audit.passes[:, number, audit.headline]
        at = numpy.unique(numpy.concatenate([[1], spent[audit.broken[:, number, audit.headline]], [spent.max()]]))
        left = [float(audit.accuracy(name, budget)[audit.headline]) for budget in at]
        line = "-" if name in members else "--"
        axes.step(at, left, where="post", linewidth=1, label=name, linestyle=line, color=f"C{number % 10}")
    axes.axhline(best, color="black", linewidth=0.8, linestyle=":", label="best known")
    axes.set(xscale="log", xlabel="passes for an image", ylabel="accuracy left", ylim=(0, 1.02))
    axes.legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
