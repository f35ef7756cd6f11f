"""Points that float32 or the projection could count wrongly as inside or outside of the set of mixtures."""

from __future__ import annotations

from types import SimpleNamespace

import numpy
import pytest
import torch

from runners.test.moves import add_noise_alone
from testing.gradient_masking import Probe, warnings
from tests.threat_specification.safe_moves.problems import COUNT, Problem
from threat_specification import L2, Intersection, ProjectedDisplacement
from threat_specification.attacks.search import Cell
from threat_specification.intersection import BoundIntersection
from threat_specification.projected_displacement.lifted import LiftedDirections
from threat_specification.safe_moves.mixtures import MixtureSet, SafeMoves
from threat_specification.safe_moves.space import Mixtures

EVERYTHING = float("inf")


def test_rounding_of_a_mixture_is_no_noise() -> None:
    """White pixels that all changes make black: with a sum of weights of 1 + 1e-7, the mixture would be below 0."""
    torch.manual_seed(0)
    x, blackened = torch.rand(400, 1, 8, 8), torch.rand(400, 9, 1, 8, 8)
    x[:, :, :4], blackened[:, :, :, :4] = 1, 0
    space = Mixtures(SafeMoves(L2().bind(x, torch.zeros(400).long()), blackened), 0.0)
    cell = Cell(EVERYTHING, 0.0)
    allowed = space.allowed(cell)
    point = allowed.project(allowed.bound.join(torch.zeros_like(x), torch.rand(400, 9) + 0.5))
    assert float((x + space.change(point)).min()) < 0
    threat, length, lawful = space.measure(point, allowed.image(point))
    assert bool((lawful & cell.holds(threat, length)).all())


def test_what_is_outside_does_not_count() -> None:
    """Weights that add up to more, one below 0, too much noise: images of other sets."""
    problem = Problem()
    space, none = Mixtures(problem.moves, 0.05), torch.zeros(COUNT, 5)
    inside, more, less = none + 0.19, none + 0.21, none + torch.tensor([0.5, -0.1, 0, 0, 0])
    allowed, still = space.allowed(Cell(EVERYTHING, 0.05)), torch.zeros_like(problem.x)
    join = allowed.bound.join
    lawful = [space.measure(point, allowed.image(point))[2] for point in (join(still, w) for w in (inside, more, less))]
    assert [each.all().item() for each in lawful] == [True, False, False] and not (lawful[1] | lawful[2]).any()
    noisy = join(torch.full_like(still, 0.06), inside)
    assert torch.allclose(space.measure(noisy, allowed.image(noisy))[1], torch.tensor(0.06))


def test_attacks_see_the_images_that_count() -> None:
    """To the bit, whatever the cell: a model may jump there."""
    problem = Problem(inner=0.1)
    space = Mixtures(problem.moves, 0.1)
    torch.manual_seed(0)
    allowed = space.allowed(Cell(0.3, 0.1))
    point = allowed.project(torch.randn(allowed.lower.shape))
    images = space.allowed(Cell(EVERYTHING, 0.0)).image(point)
    assert torch.equal(images, allowed.image(point))
    assert torch.equal(images, (problem.x + space.change(point)).clamp(0, 1))


def test_mixtures_are_float32_where_products_are_less() -> None:
    problem = Problem()
    torch.manual_seed(0)
    weights = torch.rand(COUNT, 5)
    expected = problem.moves.mixture(weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(problem.moves.mixture(weights), expected)


def test_random_changes_of_pixels_have_the_size_of_a_safe_change() -> None:
    """Without noise too, where the unit of points is one of weights."""
    problem = Problem()
    without, with_noise = (MixtureSet.of(problem.moves, 0.3, radius).pixel_reach for radius in (0.0, 0.05))
    sizes = problem.moves.shifts.square().mean(2).sqrt()
    assert bool((without.flatten() <= sizes.amax(1)).all()) and bool((without.flatten() >= sizes.amin(1)).all())
    assert torch.allclose(with_noise, torch.tensor(0.05))


def test_points_that_the_solver_misses_are_inside_and_counted() -> None:
    problem = Problem()
    allowed = MixtureSet.of(problem.moves, 0.1, 0.05)
    problem.bound.project_beside = lambda _, t, lower, upper, centre: (upper, torch.zeros(COUNT, dtype=torch.bool))
    point = allowed.project(3 * allowed.upper)
    assert bool(allowed.holds(point).all())
    assert problem.bound.fallbacks > 0


def test_weights_that_the_solver_misses_are_counted_where_the_point_was_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At PD 0 every fifth step took weights that are not the nearest, and no warning said so."""
    problem = Problem()
    allowed = MixtureSet.of(problem.moves, 0.1, 0.05)
    every = torch.arange(COUNT)
    monkeypatch.setattr(LiftedDirections, "project", lambda directions, point, *bounds: (point, every))
    target = 3 * allowed.upper
    target[::3] = 0  # inside
    point = allowed.project(target)
    assert bool(allowed.holds(point).all())
    assert problem.bound.scaled.tolist() == (every % 3 > 0).long().tolist()


def test_points_that_a_member_of_an_intersection_misses_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem()
    threat = ProjectedDisplacement(anchors=problem.anchors)
    both = Intersection([(L2(), 9.0), (Intersection([(threat, 1.0)]), 1.0)]).bind(problem.x, problem.y)
    lost = lambda bound, delta, t, lower, upper, centre: (upper, torch.zeros(COUNT, dtype=torch.bool))  # noqa: E731
    monkeypatch.setattr(BoundIntersection, "project_beside", lost)
    allowed = MixtureSet.of(SafeMoves(both, problem.changed), 0.1, 0.05)
    target = 3 * allowed.upper
    target[::3] = 0
    assert bool(allowed.holds(allowed.project(target)).all())
    assert both.scaled.tolist() == (torch.arange(COUNT) % 3 > 0).long().tolist()


def test_what_noise_alone_broke_counts_with_its_rounding() -> None:
    """The first example is broken by noise alone, in 8 bits too; the second by a mixture; the third stands."""
    cells = [Cell(0.3, 0.0), Cell(0.3, 0.05), Cell(EVERYTHING, 0.05)]
    plain = SimpleNamespace(cells=cells[1:])
    mixed = SimpleNamespace(cells=cells, attacks={"single_moves": None, "pgd": None})
    arrays = {
        "N_adv_cells": numpy.array([[False, False], [True, True], [True, False]]),
        "N_adv_correct": numpy.array([False, True, True]),
        "N_adv_rounded": numpy.array([True, False, False]),
        "N_adv_moves_cells": numpy.array([[True, True, True], [True, False, False], [True, True, True]]),
        "N_adv_moves_correct": numpy.array([True, False, True]),
        "N_adv_moves_broken_by": numpy.array([0, 2, 0]),
        "N_adv_moves_rounded": numpy.array([False, True, False]),
    }
    add_noise_alone(arrays, plain, mixed)
    assert arrays["N_adv_moves_correct"].tolist() == [False, False, True]
    assert arrays["N_adv_moves_broken_by"].tolist() == [3, 2, 0]
    assert arrays["N_adv_moves_rounded"].tolist() == [True, True, False]
    assert arrays["N_adv_moves_cells"].tolist() == [[True, False, False], [True, False, False], [True, True, False]]


def test_a_search_after_safe_changes_alone_is_no_sign_of_masking() -> None:
    broken_by = numpy.array([2, 2, 0])
    assert not warnings(Probe(), broken_by, ["single_moves", "random_search"])
    assert "search without gradients" in warnings(Probe(), broken_by, ["apgd_ce", "random_search"])[0]
