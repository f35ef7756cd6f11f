"""The form of the projection for GPUs, run on the CPU: certified answers, and nothing unverified is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from problems import (
    BOUNDS,
    THRESHOLDS,
    Problem,
    assert_certified,
    assert_far_targets_are_followed,
    certify_segmented,
    mislead,
    perturbations,
)
from scipy.optimize import nnls as scipy_nnls
from torch import Tensor

from threat_specification.projected_displacement import fixed_shapes, projection
from threat_specification.projected_displacement.nnls import nnls_of_fixed_length
from threat_specification.projected_displacement.pace import OTHERS, PACES, numbers_of


@pytest.fixture(autouse=True)
def left(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The CPU works as a GPU does; for each projection, how many examples were left to the solver that adapts."""
    monkeypatch.setitem(PACES, "cpu", replace(OTHERS, rows_bytes=1 << 27))
    counts: list[int] = []
    solve = projection.project_in_fixed_shapes

    def counted(*known: object) -> Tensor:
        numbers = solve(*known)
        counts.append(len(numbers))
        return numbers

    monkeypatch.setattr(projection, "project_in_fixed_shapes", counted)
    return counts


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("kind", ["noise", "signs", "one anchor", "twenty anchors"])
@pytest.mark.parametrize("name", ["28x28", "3x32x32"])
def test_answers_are_certified_and_stay(name: str, kind: str, bounds: str, left: list[int]) -> None:
    problem = Problem(name)
    d = perturbations(problem, kind)
    lower, upper = BOUNDS[bounds](problem.x)
    for threshold in THRESHOLDS:
        left.clear()
        p = problem.bound.nearest(d, threshold, lower, upper)
        assert sum(left) == 0 or threshold == 0
        assert_certified(problem, d, p, threshold, lower, upper)
        assert torch.equal(problem.bound.nearest(p, threshold, lower, upper), p)
    assert problem.bound.fallbacks == 0


def test_far_targets() -> None:
    assert_far_targets_are_followed("box", 0.3)


@pytest.mark.parametrize("bounds", ["box", "frozen"])
def test_corners_where_more_anchors_meet_than_there_are_pixels(bounds: str, left: list[int]) -> None:
    problem = Problem("digits")
    lower, upper = BOUNDS[bounds](problem.x)
    for kind in ("noise", "twenty anchors"):
        d = perturbations(problem, kind)
        for threshold in [each for each in THRESHOLDS if each >= 0.05]:
            p = problem.bound.nearest(d, threshold, lower, upper)
            assert_certified(problem, d, p, threshold, lower, upper)
    assert problem.bound.fallbacks == 0


@pytest.mark.parametrize("norm", ["full", "masked"])
@pytest.mark.parametrize("weighted", [False, True])
def test_segmented_and_weighted_answers_are_certified(weighted: bool, norm: str, left: list[int]) -> None:
    certify_segmented("28x28", weighted, norm)
    assert left and sum(left) == 0


def test_working_sets_grow_to_what_binds(left: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Dozens bind, and the first sets hold eight; then they are known from the start."""
    monkeypatch.setattr(fixed_shapes, "WIDTH", 8)
    widths: list[int] = []
    attempt = fixed_shapes._attempt

    def recorded(bound, work, *known):
        widths.append(work.anchors.shape[1])
        return attempt(bound, work, *known)

    monkeypatch.setattr(fixed_shapes, "_attempt", recorded)
    problem = Problem("3x32x32", num_anchors=180, batch=4)
    d = perturbations(problem, "twenty anchors") * 2
    lower, upper = BOUNDS["radius"](problem.x)
    p = problem.bound.nearest(d, 0.001, lower, upper)
    assert assert_certified(problem, d, p, 0.001, lower, upper) >= 20
    assert widths == sorted(widths) and widths[0] == 8 and widths[-1] > 20
    cold = len(widths)
    again = problem.bound.nearest(1.01 * d, 0.001, lower, upper)
    assert_certified(problem, 1.01 * d, again, 0.001, lower, upper)
    assert widths[cold] > 20 and sum(left) == 0


@pytest.mark.parametrize(
    "change",
    [{"FAR": 0.0}, {"STEPS": 0}, {"CHECKS": 1, "STEPS": 1}, {"EXCHANGES": 1}, {"MOVES": 0}],
    ids=lambda change: ",".join(change),
)
def test_what_is_not_verified_is_left_to_the_other_solver(
    change: dict, left: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in change.items():
        monkeypatch.setattr(fixed_shapes, name, value)
    problem = Problem("3x32x32")
    d = perturbations(problem, "twenty anchors")
    lower, upper = BOUNDS["radius"](problem.x)
    p = problem.bound.nearest(d, 0.01, lower, upper)
    assert_certified(problem, d, p, 0.01, lower, upper)
    assert problem.bound.fallbacks == 0
    assert sum(left) > 0 or "EXCHANGES" in change


def test_a_wrong_warm_start_changes_nothing(left: list[int]) -> None:
    problem = Problem("3x32x32")
    lower, upper = BOUNDS["radius"](problem.x)
    d = perturbations(problem, "twenty anchors")
    cold = problem.bound.nearest(d, 0.05, lower, upper)
    mislead(problem)
    again = problem.bound.nearest(d, 0.05, lower, upper)
    assert float((again - cold).abs().max()) < 1e-6


def test_least_squares_agree_with_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 12, 30, generator=generator, dtype=torch.float64)
    target = torch.randn(20, 30, generator=generator, dtype=torch.float64)
    hessian = rows @ rows.transpose(1, 2)
    linear = (rows @ target.unsqueeze(2)).squeeze(2)
    found = nnls_of_fixed_length(hessian, linear, torch.zeros_like(linear), 12)
    for number in range(len(rows)):
        expected = torch.tensor(scipy_nnls(rows[number].T.numpy(), target[number].numpy())[0])
        torch.testing.assert_close(found[number], expected, rtol=1e-6, atol=1e-8)


def test_numbers_of_a_mask_are_in_order() -> None:
    mask = torch.tensor([False, True, True, False, True])
    assert numbers_of(mask, 3).tolist() == [1, 2, 4]
    assert numbers_of(mask, 2).tolist() == [1, 2]


def test_sets_of_all_anchors_are_wide_enough(left: list[int]) -> None:
    """Most of the anchors bind, so that there is no room beside them, and none is needed."""
    problem = Problem("3x32x32", num_anchors=30, batch=4)
    d = perturbations(problem, "twenty anchors") * 2
    lower, upper = BOUNDS["radius"](problem.x)
    p = problem.bound.nearest(d, 0.001, lower, upper)
    assert assert_certified(problem, d, p, 0.001, lower, upper) > 30 / fixed_shapes.SPARE
    assert sum(left) == 0


def test_the_other_solver_goes_on_with_the_perturbations_that_were_given(
    left: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It guesses from the displacements at the clipped targets, not from those of points that led nowhere."""

    def fails(bound, work, along, *known):
        inside = bound.displacements(-0.05 * work.target, work.numbers)
        return torch.zeros(len(work.numbers), dtype=torch.bool), inside, 1

    monkeypatch.setattr(fixed_shapes, "_attempt", fails)
    problem = Problem("3x32x32")
    lower, upper = BOUNDS["none"](problem.x)
    d = 3 * perturbations(problem, "noise")  # towards some anchors and away from others
    for threshold in (0.05, 0.2):
        p = problem.bound.nearest(d, threshold, lower, upper)
        assert_certified(problem, d, p, threshold, lower, upper)
    assert sum(left) > 0 and problem.bound.fallbacks == 0
