"""What counts as found inside a set, whatever an attack claims."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from testing import nonisotropic
from testing.nonisotropic import Cell, NonisotropicEvaluation
from testing.shards import Shard
from tests.testing.test_suspicion import Brightness
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.attacks.base import Attempt

IMAGES = torch.full((6, 1, 4, 4), 0.5)
SHARD = Shard(0, IMAGES, torch.zeros(6, dtype=torch.long), torch.arange(6))
ANCHORS = AnchorSet(torch.full((1, 1, 4, 4), 0.9), torch.tensor([1]))  # a change of c everywhere has PD 2 c / 0.4
SMALL, LARGE = Cell(1.3, 0.3), Cell(2.0, 0.4)


def claims(delta: Tensor):
    """An attack that says it broke everything with the same change."""

    def member(model, labels, allowed, seed, index, steps, standing) -> Attempt:
        count = torch.zeros(len(labels), dtype=torch.long)
        return Attempt(standing, delta.expand_as(IMAGES), torch.ones(len(labels)), count, count)

    return member


def evaluate(monkeypatch: pytest.MonkeyPatch, delta: Tensor, headline: Cell, grid=(), **form) -> dict[str, Tensor]:
    monkeypatch.setattr(nonisotropic, "MEMBERS", {"fake": claims(delta)})
    threat = ProjectedDisplacement(anchors=ANCHORS, **form)
    return NonisotropicEvaluation(Brightness(), threat, headline, list(grid), ["fake"], 1, 0)(SHARD)


def test_a_change_counts_in_every_set_it_lies_in_and_in_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """+0.25 everywhere: PD 1.25, l-inf 0.25; the border of the model is at +0.2."""
    grid = [Cell(1.3, 0.3), Cell(1.2, 0.3), Cell(1.3, 0.24), Cell(2.0, 0.4), Cell(math.inf, 0.25), Cell(1.25, math.inf)]
    rows = evaluate(monkeypatch, torch.full((1, 1, 4, 4), 0.25), SMALL, grid)
    cells = sorted({SMALL, *grid})
    standing = {cell: bool(rows["N_adv_cells"][:, i].all()) for i, cell in enumerate(cells)}
    assert {cell for cell, still in standing.items() if still} == {Cell(1.2, 0.3), Cell(1.3, 0.24)}
    assert rows["N_adv_broken_by"].tolist() == [1] * 6
    assert torch.allclose(rows["N_adv_gauge"], torch.tensor(max(1.25 / 1.3, 0.25 / 0.3)))
    assert torch.allclose(rows["N_adv_threat"], torch.tensor(1.25))


def test_a_change_that_does_not_break_the_model_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = evaluate(monkeypatch, torch.full((1, 1, 4, 4), 0.15), SMALL)
    assert rows["N_adv_correct"].all() and rows["N_adv_gauge"].isinf().all()
    assert torch.allclose(rows["N_adv_Linf"], torch.tensor(0.15))  # the strongest point tried is kept all the same


def test_a_frozen_background_may_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    form = {"segmented": True, "mask_source": lambda x: torch.arange(4).view(1, 1, 1, 4).expand(len(x), 1, 4, 4) < 3}
    delta = torch.full((1, 1, 4, 4), 0.28)
    assert evaluate(monkeypatch, delta, LARGE, **form)["N_adv_correct"].all()
    delta = delta * (torch.arange(4) < 3)
    assert not evaluate(monkeypatch, delta, LARGE, **form)["N_adv_correct"].any()
    everywhere = evaluate(monkeypatch, torch.full((1, 1, 4, 4), 0.28), LARGE, background="radius", **form)
    assert not everywhere["N_adv_correct"].any()
