"""The lengths of attacks' steps and moves, which follow from the size of the set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from threat_specification import L2, AnchorSet, Intersection, Linf, ProjectedDisplacement
from threat_specification.attacks.base import AttackSet, Task
from threat_specification.attacks.estimated_gradient import _estimate
from threat_specification.attacks.search import Cell, Search


@pytest.mark.parametrize(("radius", "move"), [(0.06, 0.06), (0.2, 0.1), (0.3, 0.1), (0.42, 0.14)])
def test_moves_of_an_estimate_cross_steps_between_levels(radius: float, move: float) -> None:
    """A third of a small radius seldom crosses one of ten or twenty levels of input."""
    images, asked = torch.full((2, 1, 4, 4), 0.5), []

    def model(inputs: Tensor) -> Tensor:
        asked.append(inputs)
        return inputs.flatten(1)[:, :2]

    allowed = AttackSet.within(Linf().bind(images, torch.zeros(2, dtype=torch.long)), radius, radius)
    index = torch.arange(2)
    task = Task(model, torch.zeros_like(index), allowed, index >= 0, seed=0, index=index, steps=1)
    _estimate(task, torch.zeros_like(images), range(1))
    assert (asked[0] - asked[1]).abs().flatten().tolist() == pytest.approx([2 * move] * 32)


def test_steps_in_a_ball_are_of_its_size() -> None:
    """They were of the pixel box where no radius stands beside the ball: 56 radii of an l2 ball."""
    images, labels = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])
    anchors = AnchorSet(torch.rand(4, 1, 4, 4), torch.arange(4) % 2)
    for threat, threshold, radius, expected in (
        (Linf(), 0.2, torch.inf, 0.2),
        (L2(), 0.4, torch.inf, 0.1),
        (L2(), 0.4, 0.05, 0.05),
        (Intersection([(L2(), 0.4), (Linf(), 0.3)]), 0.5, torch.inf, 0.05),
        (ProjectedDisplacement(anchors=anchors), 0.2, torch.inf, 0.5),
    ):
        found = Search(lambda x: x.flatten(1), threat.bind(images, labels), labels, labels, Cell(0, 0), 1, 0)
        allowed = found.space.allowed(Cell(threshold, radius))
        assert allowed.reach.flatten().tolist() == pytest.approx([expected] * 2), (threat.name, radius)


def test_steps_where_a_background_is_free_are_those_of_the_pixel_box() -> None:
    images, labels = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])
    anchors = AnchorSet(torch.rand(4, 1, 4, 4), torch.arange(4) % 2)
    for background, expected in (("frozen", 0.2), ("radius", 0.2), ("free", 0.5)):
        threat = ProjectedDisplacement(anchors=anchors, segmented=True, mask_source="center", background=background)
        found = Search(lambda x: x.flatten(1), threat.bind(images, labels), labels, labels, Cell(0, 0), 1, 0)
        assert found.space.allowed(Cell(0.1, 0.2)).reach.flatten().tolist() == pytest.approx([expected] * 2)
