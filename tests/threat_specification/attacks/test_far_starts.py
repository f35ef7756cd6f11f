"""Examples that break at the far end of the set alone, where no descent from near the image leads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.attacks.registry import attacks_named
from threat_specification.attacks.search import Cell, Search
from threat_specification.attacks.starts import STARTS, begin

COUNT, SIDE, RADIUS = 24, 6, 0.3
HEADLINE = Cell(0.05, RADIUS)


class TwoHills(nn.Module):
    """Class 1 where the first pixel has fallen by more than 0.25.

    A low hill leads up from the middle, and ends below the border; the one that breaks begins 0.12 below the middle.
    """

    def forward(self, images: Tensor) -> Tensor:
        moved = images.flatten(1)[:, :1] - 0.5 + 1e-5 * images.flatten(1)[:, 1:].mean(1, keepdim=True)
        margin = torch.maximum(0.1 * moved, -moved - 0.12) - 0.13
        return 10 * torch.cat([-margin, margin], 1)


def search() -> Search:
    """PD that keeps the mean from rising or falling, and so shrinks noise to almost nothing."""
    images = torch.full((COUNT, 1, SIDE, SIDE), 0.5)
    anchors = AnchorSet(torch.stack([torch.full((1, SIDE, SIDE), level) for level in (0.4, 0.6)]), torch.ones(2).long())
    labels = torch.zeros(COUNT, dtype=torch.long)
    bound = ProjectedDisplacement(anchors=anchors).bind(images, labels)
    return Search(TwoHills(), bound, labels, torch.arange(COUNT), HEADLINE, 40, seed=0)


@pytest.mark.parametrize("name", ["momentum_ce", "momentum_margin", "sign_targeted"])
def test_attacks_of_the_ensemble_find_the_far_hill(name: str) -> None:
    found = search()
    found.attack(HEADLINE, attacks_named([name], 2))
    assert int((~found.robust(HEADLINE)).sum()) >= 0.4 * COUNT


def test_the_ensemble_leaves_next_to_none() -> None:
    found = search()
    found.attack(HEADLINE, attacks_named([], 2))
    assert int(found.robust(HEADLINE).sum()) <= 2


def test_a_start_near_the_image_leads_up_the_wrong_hill() -> None:
    """These examples are planted so that plain PGD from scaled noise hardly breaks any of them."""
    found = search()
    found.attack(HEADLINE, attacks_named(["pgd"], 2))
    assert int(found.robust(HEADLINE).sum()) >= 0.9 * COUNT


@pytest.mark.parametrize("start", list(STARTS))
def test_starts_are_in_the_set_and_cost_others_nothing(start: str) -> None:
    task = search().task(HEADLINE, torch.arange(COUNT) % 2 == 0)
    point = begin(task, start, 3)
    assert bool(task.allowed.holds(point).all())
    assert not bool(point[~task.robust].any())
    alone = search().task(HEADLINE, torch.ones(COUNT, dtype=torch.bool))
    assert torch.allclose(begin(alone, start, 3)[task.robust], point[task.robust], atol=1e-5)


def test_corners_are_far_from_the_image_and_from_each_other() -> None:
    task = search().task(HEADLINE, torch.ones(COUNT, dtype=torch.bool))
    first, second, near = begin(task, "corner", 3), begin(task, "corner", 4), begin(task, "scaled_noise", 3)
    length = first.flatten(1).norm(dim=1)
    assert float((length / near.flatten(1).norm(dim=1)).median()) > 3
    assert float(((first - second).flatten(1).norm(dim=1) / length).min()) > 0.5


class LeastLikely(nn.Module):
    """Of five classes only the least likely one is reached: where the first pixel falls by 0.1."""

    def forward(self, images: Tensor) -> Tensor:
        fallen = 0.5 - images.flatten(1)[:, 0]
        constant = [torch.full_like(fallen, value) for value in (0.0, -0.1, -0.2, -0.3)]
        return torch.stack([*constant, 10 * fallen - 1], 1)


@pytest.mark.parametrize("name", ["momentum_targeted", "sign_targeted"])
def test_every_other_class_is_a_target(name: str) -> None:
    found = search()
    found.model = LeastLikely()
    found.attack(HEADLINE, attacks_named([name], 5))
    assert not bool(found.robust(HEADLINE).any())
