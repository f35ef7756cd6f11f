"""The exact projection: every answer certified by its KKT conditions, in float64 and from the images alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    BATCH,
    BOUNDS,
    THRESHOLDS,
    Problem,
    assert_certified,
    assert_far_targets_are_followed,
    certify_segmented,
    data,
    mislead,
    perturbations,
)
from scipy.optimize import minimize
from scipy.optimize import nnls as scipy_nnls

from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.attacks.search import Cell, attack_set
from threat_specification.projected_displacement.nnls import nnls


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("kind", ["noise", "signs", "one anchor", "twenty anchors"])
@pytest.mark.parametrize("name", ["digits", "28x28", "3x32x32"])
def test_answers_are_certified_and_stay(name: str, kind: str, bounds: str) -> None:
    problem = Problem(name)
    d = perturbations(problem, kind)
    lower, upper = BOUNDS[bounds](problem.x)
    for threshold in THRESHOLDS:
        p = problem.bound.nearest(d, threshold, lower, upper)
        assert_certified(problem, d, p, threshold, lower, upper)
        assert torch.equal(problem.bound.nearest(p, threshold, lower, upper), p)
    assert getattr(problem.bound, "fallbacks", 0) == 0


@pytest.mark.parametrize("norm", ["full", "masked"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["digits", "28x28"])
def test_segmented_and_weighted_answers_are_certified(name: str, weighted: bool, norm: str) -> None:
    """Both norms of the segmented form, with and without weights, by the KKT conditions in float64."""
    certify_segmented(name, weighted, norm)


def test_a_cell_that_is_attacked_projects_to_its_nearest_point() -> None:
    """The projection that attacks call in every step, from the cell on, by the KKT conditions."""
    problem = Problem("28x28")
    d = perturbations(problem, "twenty anchors")
    lower, upper = BOUNDS["radius"](problem.x)
    for threshold in THRESHOLDS:
        allowed = attack_set(problem.bound, Cell(threshold, 0.1))
        assert_certified(problem, d, allowed.project(d), threshold, lower, upper)


@pytest.mark.parametrize("bounds", ["none", "box", "radius"])
def test_dozens_of_anchors_bind(bounds: str) -> None:
    problem = Problem("3x32x32", num_anchors=180, batch=4)
    d = perturbations(problem, "twenty anchors") * 2
    lower, upper = BOUNDS[bounds](problem.x)
    p = problem.bound.nearest(d, 0.001, lower, upper)
    assert assert_certified(problem, d, p, 0.001, lower, upper) >= 20
    assert getattr(problem.bound, "fallbacks", 0) == 0


@pytest.mark.parametrize("bounds", ["box", "radius"])
@pytest.mark.parametrize("threshold", [0.01, 0.3])
def test_far_targets(bounds: str, threshold: float) -> None:
    """Beyond 10,000 lengths of the box the nearest point was 0 (accuracy under one long step .93 for .70)."""
    assert_far_targets_are_followed(bounds, threshold)


def test_agrees_with_a_slow_dual_method() -> None:
    """L-BFGS-B on the dual of all anchors, float64."""
    problem = Problem("28x28", num_anchors=60, batch=4)
    d = perturbations(problem, "twenty anchors")
    lower, upper = BOUNDS["radius"](problem.x)
    p = problem.bound.nearest(d, 0.05, lower, upper)
    for i in range(len(d)):
        rows = problem.rows(i)
        scale = np.linalg.norm(rows, axis=1)
        rows, limit = rows / scale[:, None], 0.05 / scale
        target, low, high = (each[i].flatten().double().numpy() for each in (d, lower, upper))

        def negative_dual(multipliers, rows=rows, limit=limit, target=target, low=low, high=high):
            z = np.clip(target - multipliers @ rows, low, high)
            excess = rows @ z - limit
            return -(0.5 * ((z - target) ** 2).sum() + multipliers @ excess), -excess

        options = {"maxiter": 20000, "maxfun": 50000, "ftol": 1e-16, "gtol": 1e-11, "maxcor": 30}
        start = np.zeros(len(rows))
        best = minimize(negative_dual, start, jac=True, bounds=[(0, None)] * len(rows), options=options)
        distance = float((d[i].double() - p[i].double()).norm())
        assert distance == pytest.approx(np.sqrt(-2 * best.fun), rel=1e-6)
        z = np.clip(target - best.x @ rows, low, high)
        assert np.abs(z - p[i].flatten().numpy()).max() < 1e-5


def test_the_sum_with_the_image_stays_inside() -> None:
    problem = Problem("3x32x32")
    for threshold in THRESHOLDS:
        d = perturbations(problem, "twenty anchors")
        p = problem.bound.nearest(d, threshold)
        assert problem.excess((problem.x + p) - problem.x, threshold) <= 1e-6 * threshold


def test_a_warm_start_changes_nothing() -> None:
    problem = Problem("3x32x32")
    lower, upper = BOUNDS["radius"](problem.x)
    delta = torch.zeros_like(problem.x)
    for step in range(8):
        moved = delta + 0.5 * perturbations(problem, "signs", seed=step)
        warm = problem.bound.nearest(moved, 0.02, lower, upper)
        problem.bound.warm = None
        cold = problem.bound.nearest(moved, 0.02, lower, upper)
        assert float((warm - cold).abs().max()) < 1e-6
        delta = warm


def test_a_wrong_warm_start_changes_nothing() -> None:
    problem = Problem("3x32x32")
    lower, upper = BOUNDS["radius"](problem.x)
    d = perturbations(problem, "twenty anchors")
    cold = problem.bound.nearest(d, 0.05, lower, upper)
    mislead(problem)
    again = problem.bound.nearest(d, 0.05, lower, upper)
    assert float((again - cold).abs().max()) < 1e-6
    assert getattr(problem.bound, "fallbacks", 0) == 0


def test_feasible_rows_return_their_bits_and_do_not_disturb_others() -> None:
    problem = Problem("3x32x32")
    d = perturbations(problem, "twenty anchors")
    d[::2] *= 1e-3
    lower, upper = BOUNDS["box"](problem.x)
    d[::2] = torch.minimum(torch.maximum(d[::2], lower[::2]), upper[::2])
    p = problem.bound.nearest(d, 0.05, lower, upper)
    assert torch.equal(p[::2], d[::2])
    assert not torch.equal(p[1::2], d[1::2])
    assert_certified(problem, d, p, 0.05, lower, upper)


def test_float64_decides_what_float32_cannot() -> None:
    """Points beyond the threshold by less than the rounding of their displacements, and points on it."""
    problem = Problem("3x32x32")
    none = BOUNDS["none"](problem.x)
    p = problem.bound.nearest(3 * perturbations(problem, "noise"), 0.05, *none)
    beyond = p * (1 + 1e-5)
    assert problem.excess(beyond, 0.05) > 5e-6 * 0.05
    again = problem.bound.nearest(beyond, 0.05, *none)
    assert problem.excess(again, 0.05) <= 1e-6 * 0.05
    assert torch.equal(problem.bound.nearest(p, 0.05, *none), p)


def test_where_no_anchor_counts_only_the_bounds_do() -> None:
    """As for an image with an empty mask."""
    images, labels = data("3x32x32")
    masks = torch.ones(5, 1, *images.shape[2:], dtype=torch.bool)
    masks[3] = False
    threat = ProjectedDisplacement(anchors=AnchorSet(images, labels), segmented=True, background="radius")
    bound = threat.bind(images[:5] * 0.9 + 0.05, labels[:5], masks=masks)
    lower, upper = BOUNDS["radius"](bound.examples)
    d = 3 * torch.randn(images[:5].shape, generator=torch.Generator().manual_seed(0))
    p = bound.nearest(d, 0.05, lower, upper)
    assert torch.equal(p[3], torch.minimum(torch.maximum(d[3], lower[3]), upper[3]))
    assert float(bound.evaluate(p).max()) <= 0.05 * (1 + 1e-5)


def test_equal_anchors_and_one_anchor() -> None:
    images, labels = data("3x32x32")
    twice = torch.cat([images[:30], images[:30]]), torch.cat([labels[:30], labels[:30]])
    results = []
    for anchors in (twice, (images[:30], labels[:30])):
        bound = ProjectedDisplacement(anchors=AnchorSet(*anchors)).bind(images[50:54], labels[50:54])
        results.append(bound.nearest(images[60:64] - images[50:54], 0.05))
        assert getattr(bound, "fallbacks", 0) == 0
    assert float((results[0] - results[1]).abs().max()) < 1e-6
    bound = ProjectedDisplacement(anchors=AnchorSet(images[:1], labels[:1])).bind(images[51:52], labels[51:52])
    d = images[:1] - images[51:52]
    none = BOUNDS["none"](d)
    assert float((bound.nearest(d, 0.5, *none) - d / 4).abs().max()) < 1e-6  # threat 2 at the anchor


def test_what_newton_cannot_do_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from threat_specification.projected_displacement import projection

    problem = Problem("3x32x32")
    d = perturbations(problem, "twenty anchors")
    monkeypatch.setattr(projection, "ROUNDS", 1)
    monkeypatch.setattr(projection, "halfspace_multipliers", lambda *known: [])
    p = problem.bound.nearest(d, 0.05)
    assert problem.bound.fallbacks == BATCH
    assert problem.excess(p, 0.05) <= 1e-6 * 0.05


def test_it_is_counted_for_the_rows_that_it_happened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from threat_specification.projected_displacement import bound as module

    problem, solve = Problem("3x32x32"), module.project_exact
    d = perturbations(problem, "twenty anchors")
    monkeypatch.setattr(module, "project_exact", lambda *known: (solve(*known)[0], torch.tensor([1, BATCH - 1])))
    for times in (1, 2):
        p = problem.bound.nearest(d, 0.05)
        assert problem.bound.scaled.tolist() == [times if row in (1, BATCH - 1) else 0 for row in range(BATCH)]
    scaled = problem.bound.scale(d, 0.05)
    assert [row for row in range(BATCH) if p[row].equal(scaled[row])] == [1, BATCH - 1]


@pytest.mark.parametrize("kind", ["noise", "one anchor", "twenty anchors"])
@pytest.mark.parametrize("weighted", [False, True])
def test_without_bounds_the_gram_matrix_knows_the_answer(
    kind: str, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from threat_specification.projected_displacement import projection

    problem = Problem("3x32x32")
    weights = 0.5 + torch.rand(10, 10, generator=torch.Generator().manual_seed(2))
    if weighted:
        anchors = AnchorSet(problem.anchors, problem.anchor_labels)
        problem.threat = ProjectedDisplacement(anchors=anchors, weighted=True, class_weights=weights).prepare()
        problem.bound = problem.threat.bind(problem.x, problem.y)
        plain = problem.rows
        others = [problem.anchor_labels[problem.anchor_labels != y] for y in problem.y]
        problem.rows = lambda i: plain(i) / weights[problem.y[i]][others[i]].numpy()[:, None]
    d = perturbations(problem, kind)
    lower, upper = BOUNDS["none"](d)
    with monkeypatch.context() as patch:  # all answers come from the guess
        patch.setattr(projection, "_solve", lambda *known: pytest.fail("Newton was asked"))
        p = problem.bound.nearest(d, 0.05, lower, upper)
    assert_certified(problem, d, p, 0.05, lower, upper)
    problem.bound.warm = None
    monkeypatch.setattr(type(problem.bound), "has_gram", False)
    assert float((problem.bound.nearest(d, 0.05, lower, upper) - p).abs().max()) < 1e-5


def test_a_guess_that_forgets_an_anchor_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest point of one half-space alone: within its working set nothing is wrong with it."""
    from threat_specification.projected_displacement import projection

    problem = Problem("3x32x32")
    d = perturbations(problem, "twenty anchors")
    lower, upper = BOUNDS["none"](d)
    forgotten = []

    def forgetful(bound, numbers, along, noise, threshold):
        largest, anchors = along.max(1, keepdim=True)
        rows, norms = bound.working_rows(numbers, anchors)
        multipliers = (largest.double() - threshold) / norms.square()
        point = d.flatten(1)[numbers] - (multipliers.float().unsqueeze(2) * rows).squeeze(1)
        others = bound.displacements(point, numbers).scatter(1, anchors, -torch.inf).amax(1)
        forgotten.append(int((others > threshold).sum()))
        yield numbers, anchors, multipliers, others

    monkeypatch.setattr(projection, "halfspace_multipliers", forgetful)
    p = problem.bound.nearest(d, 0.05, lower, upper)
    assert forgotten[0] >= BATCH // 2
    assert_certified(problem, d, p, 0.05, lower, upper)


def test_a_wrong_guess_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from threat_specification.projected_displacement import projection

    problem = Problem("3x32x32")
    d = perturbations(problem, "twenty anchors")
    lower, upper = BOUNDS["none"](d)

    def wrong(bound, numbers, along, noise, threshold):
        anchors = (-along).topk(3, dim=1).indices  # those that d leads away from, or masked ones
        yield numbers, anchors, torch.full(anchors.shape, 0.7, dtype=torch.float64), torch.zeros(len(numbers))

    monkeypatch.setattr(projection, "halfspace_multipliers", wrong)
    p = problem.bound.nearest(d, 0.05, lower, upper)
    assert problem.bound.fallbacks == 0
    assert_certified(problem, d, p, 0.05, lower, upper)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    threshold=st.sampled_from(THRESHOLDS),
    bounds=st.sampled_from(sorted(BOUNDS)),
    size=st.sampled_from([0.03, 0.3, 3.0]),
)
def test_idempotent_and_non_expansive(seed: int, threshold: float, bounds: str, size: float) -> None:
    problem = Problem("28x28", num_anchors=60)
    generator = torch.Generator().manual_seed(seed)
    lower, upper = BOUNDS[bounds](problem.x)
    d = size * torch.randn(problem.x.shape, generator=generator)
    nearby = d + 0.1 * size * torch.randn(d.shape, generator=generator)
    p = problem.bound.nearest(d, threshold, lower, upper)
    q = problem.bound.nearest(nearby, threshold, lower, upper)
    assert torch.equal(problem.bound.nearest(p, threshold, lower, upper), p)
    assert bool(((p - q).flatten(1).norm(dim=1) <= (d - nearby).flatten(1).norm(dim=1) + 1e-5).all())
    assert problem.excess(p, threshold) <= 1e-6 * threshold
    assert getattr(problem.bound, "fallbacks", 0) == 0


@pytest.mark.parametrize("rank", [3, 12, 40])
def test_many_least_squares_at_once_agree_with_scipy(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    factors = torch.randn(20, rank, 12, generator=generator, dtype=torch.float64)
    right = torch.randn(20, rank, generator=generator, dtype=torch.float64)
    hessian = factors.transpose(1, 2) @ factors
    linear = (factors.transpose(1, 2) @ right.unsqueeze(2)).squeeze(2)
    for start in (torch.zeros_like(linear), torch.rand(linear.shape, generator=generator, dtype=torch.float64)):
        found = nnls(hessian, linear, start)
        assert bool((found >= 0).all())
        for i in range(20):
            residual = float((factors[i] @ found[i] - right[i]).norm())
            assert residual == pytest.approx(scipy_nnls(factors[i].numpy(), right[i].numpy())[1], abs=1e-6)


@pytest.mark.parametrize("form", ["plain", "weighted", "segmented"])
def test_rows_of_working_sets_are_directions_with_their_lengths(form: str) -> None:
    problem = Problem("3x32x32")
    anchors = AnchorSet((255 * problem.anchors).round().to(torch.uint8), problem.anchor_labels)
    options = {
        "weighted": {"weighted": True, "class_weights": 0.5 + torch.rand(10, 10)},
        "segmented": {"segmented": True},
    }
    masks = {"masks": torch.rand(BATCH, 1, 32, 32) < 0.5} if form == "segmented" else {}
    bound = (
        ProjectedDisplacement(anchors=anchors, **options.get(form, {})).prepare().bind(problem.x, problem.y, **masks)
    )
    numbers, chosen = torch.tensor([5, 0, 3]), torch.arange(60).view(3, 20)  # of all classes, that of x too
    rows, lengths = bound.working_rows(numbers, chosen)
    which = numbers.view(-1, 1).expand_as(chosen)
    expected = bound.directions(which.reshape(-1), chosen.reshape(-1)).view(3, 20, -1)
    assert rows.equal(expected)
    own = ~expected.any(2)  # anchors of the class of x, which pad working sets: any length but 0 will do
    assert bool(own.any()) and bool((lengths[own] == 1).all())
    assert torch.allclose(lengths[~own], expected.double().norm(dim=2)[~own], rtol=1e-5)
    if form != "segmented":
        exact = expected.double() @ expected.double().transpose(1, 2)
        found = bound.curvature(numbers, chosen)
        assert torch.allclose(found.double(), exact, rtol=1e-3, atol=1e-5 * float(exact.max()))
        assert found.equal(found.transpose(1, 2))


@pytest.mark.parametrize("bounds", ["none", "radius"])
def test_one_step_brings_points_into_the_set(bounds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton stops at a residual of 1e-6. With a Hessian that is only nearly symmetric, settling takes many steps."""
    from threat_specification.projected_displacement import dual_newton, projection

    problem = Problem("3x32x32")
    d = perturbations(problem, "twenty anchors")
    lower, upper = BOUNDS[bounds](problem.x)
    solve, settle, steps = dual_newton.nnls, projection.settle, []

    def counted(work, hessian, threshold, buffers):
        calls = []
        with monkeypatch.context() as patch:
            patch.setattr(dual_newton, "nnls", lambda *known: calls.append(1) or solve(*known))
            good = settle(work, hessian, threshold, buffers)
        steps.append(len(calls))
        return good

    monkeypatch.setattr(projection, "settle", counted)
    p = problem.bound.nearest(d, 0.05, lower, upper)
    assert_certified(problem, d, p, 0.05, lower, upper)
    assert steps and max(steps) == 1


def test_displacements_of_tiles_are_those_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    from threat_specification.projected_displacement import dual_newton
    from threat_specification.projected_displacement.buffers import Buffers
    from threat_specification.projected_displacement.pace import PACES

    generator = torch.Generator().manual_seed(0)
    rows, points = torch.randn(7, 5, 300, generator=generator), torch.randn(7, 300, generator=generator)
    for size in (1, 3 * 8 * 5 * 300, 1 << 20):  # one example at a time, three, all
        monkeypatch.setitem(PACES, "cpu", replace(PACES["cpu"], tile_bytes=size))
        found = dual_newton.exact_inner(rows, points, Buffers())
        assert np.allclose(found, np.einsum("rkd,rd->rk", rows.double().numpy(), points.double().numpy()), rtol=1e-13)
