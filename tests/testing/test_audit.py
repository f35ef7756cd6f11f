"""The audit of attacks: against runs of ensembles, and figures counted by hand."""

from __future__ import annotations

import itertools
import math

import numpy
import pytest
import torch

from testing.audit import BROKEN, PASSES, Audit, AuditEvaluation
from testing.evaluations import AttackEvaluation
from testing.shards import Shard
from tests.threat_specification.attacks.linear import problem
from threat_specification import ProjectedDisplacement
from threat_specification.attacks.registry import attacks_named
from threat_specification.attacks.search import Cell

NAMES = ["momentum_margin", "random_search", "apgd_ce", "pgd"]
HEADLINE, GRID = Cell(0.1, 0.2), [Cell(0.05, 0.2), Cell(0.2, 0.2), Cell(0.1, 0.3), Cell(math.inf, 0.2)]


@pytest.fixture(scope="module")
def audited() -> tuple[AttackEvaluation, AuditEvaluation, Shard, Audit]:
    model, anchors, images, labels = problem(4, count=20)
    labels = labels.clone()
    labels[0] = (labels[0] + 1) % 4  # wrong without attack
    attacked = AttackEvaluation(
        model, ProjectedDisplacement(anchors=anchors), HEADLINE, attacks_named(NAMES, 4), 6, 0, GRID
    )
    evaluation, shard = AuditEvaluation(attacked, attacked.attacks), Shard(0, images, labels, torch.arange(20))
    arrays = {name: rows.numpy() for name, rows in evaluation(shard).items()}
    return attacked, evaluation, shard, Audit.of(evaluation, arrays)


def test_any_ensemble_is_as_the_audit_tells(audited: tuple) -> None:
    """Accuracy left and passes, in some orders, from real runs of the ensemble."""
    attacked, _, shard, audit = audited
    breaking = audit.broken[:, :, audit.headline].sum(0)
    assert len(set(breaking.tolist())) > 1 and breaking.min() > 0 and breaking.max() < 20
    for names in [NAMES, NAMES[::-1], ["random_search", "momentum_margin"], ["apgd_ce"]]:
        search = attacked.search(shard)
        search.attack(HEADLINE, {name: attacked.attacks[name] for name in names})
        told = audit.in_turn(names)[-1]
        assert told[0] == pytest.approx(float(search.robust(HEADLINE).float().mean()))
        assert told[1] == pytest.approx(float((search.forwards + search.backwards).float().mean()))


def test_cells_of_the_curve(audited: tuple) -> None:
    """Those of the headline's radius, growing."""
    _, evaluation, shard, audit = audited
    assert evaluation.cells == [Cell(0.05, 0.2), HEADLINE, Cell(0.2, 0.2)] and audit.headline == 1
    assert audit.broken[:, :, 0].sum() < audit.broken[:, :, 2].sum()
    assert not audit.broken[0].any() and not audit.passes[0].any()
    for place, cell in enumerate(evaluation.cells):
        search = evaluation.attacked.search(shard)
        search.attack(cell, {"apgd_ce": evaluation.attacks["apgd_ce"]})
        number = audit.names.index("apgd_ce")
        assert (audit.broken[:, number, place] == (search.right & ~search.robust(cell)).numpy()).all()
        assert (audit.passes[:, number, place] == (search.forwards + search.backwards).numpy()).all()
    assert audit.right.tolist() == [False] + [True] * 19
    found = evaluation(shard)
    for name in (PASSES, BROKEN):
        assert found[name].shape == (20, len(NAMES) * 3)


def made() -> Audit:
    """Five images, the last one wrong; attacks a, b, c; two cells, of which the second is the headline."""
    right = numpy.array([1, 1, 1, 1, 0], bool)
    passes, broken = numpy.zeros((5, 3, 2), int), numpy.zeros((5, 3, 2), bool)
    passes[:4, :, 0] = 50
    passes[:4, :, 1] = [[10, 40, 30], [10, 40, 30], [100, 40, 200], [100, 90, 200]]
    broken[:, :, 1] = [[1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    broken[0, 0, 0] = True
    return Audit(["a", "b", "c"], right, passes, broken, headline=1)


def test_figures_counted_by_hand() -> None:
    audit = made()
    assert audit.accuracy("a").tolist() == pytest.approx([0.6, 0.4])
    assert audit.accuracy("b", 39).tolist() == pytest.approx([0.8, 0.8])
    # Lowest curve: 0.6, 0.4. Areas under 0.8: a 0.2 + 0.4, b 0 + 0.4, c 0 + 0.2.
    assert audit.optimality(math.inf) == pytest.approx({"a": 1, "b": 0.4 / 0.6, "c": 0.2 / 0.6})
    # In 45 passes nothing is found in the first cell: a and b reach 0.4 there.
    assert audit.optimality(45) == pytest.approx({"a": 1, "b": 1, "c": 0.5})
    assert all(math.isnan(value) for value in audit.optimality(5).values())
    assert [audit.only(name, audit.names) for name in audit.names] == [0, 1, 0]
    assert audit.only("a", ["a", "b"]) == 1
    assert audit.in_turn(["a", "b"]) == [pytest.approx((0.4, 220 / 5)), pytest.approx((0.2, (220 + 130) / 5))]
    # a breaks 2 in 220 passes, b 2 in 210, c 1 in 460: b, then a; c breaks nothing more.
    assert audit.by_gain(audit.names) == ["b", "a"]


def test_by_gain_loses_nothing(audited: tuple) -> None:
    audit = audited[-1]
    order = audit.by_gain(audit.names)
    everything = float((audit.right & ~audit.broken[:, :, audit.headline].any(1)).mean())
    assert audit.in_turn(order)[-1][0] == everything
    assert all(audit.in_turn(list(names))[-1][0] == everything for names in itertools.permutations(order))
