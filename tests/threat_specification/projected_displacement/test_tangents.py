"""The tangent form against float64 loops over its definition, and its projections by their KKT conditions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import BOUNDS, Problem, assert_certified, certify_segmented, data, mislead, perturbations
from tangent_oracle import ALL, directions, tangents

from foundations.errors import UsageError
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.projected_displacement import anchor_matrix
from threat_specification.projected_displacement.halfspaces import halfspace_multipliers
from threat_specification.projected_displacement.pace import OTHERS, PACES
from threat_specification.projected_displacement.tangents import Tangents

DATA = ("digits", "28x28", "3x32x32")


def values(problem: Problem, d: torch.Tensor, **form: object) -> np.ndarray:
    """PD-T of perturbations, one example at a time, float64."""
    flat, labels = problem.anchors.flatten(1).numpy(), problem.anchor_labels.numpy()
    rows = [directions(x.numpy(), int(y), flat, labels, **form) for x, y in zip(problem.x, problem.y, strict=True)]
    return np.array(
        [max(0.0, float((each @ v.flatten().double().numpy()).max())) for each, v in zip(rows, d, strict=True)]
    )


@pytest.mark.parametrize("names", [ALL, ("brightness", "contrast"), ("affine",), ("blur",)])
@pytest.mark.parametrize("name", DATA)
def test_equals_float64_loops(name: str, names: tuple[str, ...]) -> None:
    problem = Problem(name)
    for weight in (0.1, 3.0):
        anchors = AnchorSet(problem.anchors, problem.anchor_labels)
        threat = ProjectedDisplacement(anchors=anchors, tangents=names, tangent_weight=weight)
        for kind in ("noise", "one anchor"):
            d = perturbations(problem, kind)
            got = threat.bind(problem.x, problem.y).evaluate(d).double().numpy()
            np.testing.assert_allclose(got, values(problem, d, names=names, weight=weight), rtol=3e-6, atol=1e-9)


def test_the_metric_is_the_inverse_of_its_definition() -> None:
    """M = (I + T^T T / weight)^-1, written out for all pixels of 8x8 images."""
    x = data("digits")[0][:5]
    made = Tangents.of(True, 0.1)
    assert made is not None
    metric = made.metric(x)
    v = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    for i, image in enumerate(x.numpy()):
        rows = tangents(image)
        expected = np.linalg.inv(np.eye(64) + rows.T @ rows / 0.1) @ v[i].double().numpy()
        np.testing.assert_allclose(metric.apply(v)[i].numpy(), expected, atol=1e-6)


def test_changes_along_tangents_cost_little_and_steps_to_anchors_what_they_did() -> None:
    problem = Problem("28x28", tangents=True)
    plain = Problem("28x28").bound
    brighter = 0.05 * torch.ones_like(problem.x)
    assert bool((problem.bound.evaluate(brighter) < 0.5 * plain.evaluate(brighter)).all())
    other = problem.anchors[problem.anchor_labels == 9][:1] - problem.x[:8]  # no example has this class
    assert 9 not in problem.y.tolist()
    for share in (0.25, 1.0):
        assert float(problem.bound.evaluate(share * other).min()) >= 2 * share * (1 - 1e-6)


def test_a_large_weight_is_the_plain_form() -> None:
    problem = Problem("28x28")
    anchors = AnchorSet(problem.anchors, problem.anchor_labels)
    d = perturbations(problem, "noise")
    heavy = ProjectedDisplacement(anchors=anchors, tangents=True, tangent_weight=1e7).bind(problem.x, problem.y)
    torch.testing.assert_close(heavy.evaluate(d), problem.bound.evaluate(d), rtol=1e-5, atol=0)


def test_even_images_have_no_tangents_but_brightness() -> None:
    """Nothing to stretch, to move or to blur: those tangents are dropped, and nothing is NaN."""
    problem = Problem("28x28")
    problem.x = torch.full_like(problem.x, 0.5)
    anchors = AnchorSet(problem.anchors, problem.anchor_labels)
    d = perturbations(problem, "one anchor")
    got = ProjectedDisplacement(anchors=anchors, tangents=True).bind(problem.x, problem.y).evaluate(d)
    expected = values(problem, d, names=("brightness",))
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=3e-6)


@pytest.mark.parametrize(("fixed", "gram"), [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("name", DATA)
def test_projections_are_certified(name: str, fixed: bool, gram: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold, warm and from a wrong warm start, with and without the Gram matrix, on both solvers."""
    if fixed:
        monkeypatch.setitem(PACES, "cpu", replace(OTHERS, rows_bytes=1 << 27))
    if not gram:
        monkeypatch.setattr(anchor_matrix, "GRAM_BYTES", 0)
    problem = Problem(name, tangents=True)
    assert problem.bound.has_gram == gram
    for bounds in ("none", "radius"):
        lower, upper = BOUNDS[bounds](problem.x)
        for kind in ("noise", "twenty anchors"):
            d = perturbations(problem, kind)
            for threshold in (0.05, 0.3):
                p = problem.bound.nearest(d, threshold, lower, upper)
                assert_certified(problem, d, p, threshold, lower, upper)
                assert torch.equal(problem.bound.nearest(p, threshold, lower, upper), p)
            mislead(problem)
            again = problem.bound.nearest(d, threshold, lower, upper)
            assert float((again - p).abs().max()) < 3e-6
    assert problem.bound.fallbacks == 0


@pytest.mark.parametrize("name", DATA)
def test_products_from_the_gram_matrix_are_those_of_the_rows(name: str) -> None:
    """Wrong ones would only cost time, since the projection checks what it is given."""
    problem = Problem(name, tangents=True)
    numbers, count = torch.arange(len(problem.x)), len(problem.anchors)
    anchors = torch.stack(
        [torch.randperm(count, generator=torch.Generator().manual_seed(int(i)))[:12] for i in numbers]
    )
    rows = problem.bound.directions(numbers.repeat_interleave(12), anchors.flatten()).view(len(numbers), 12, -1)
    expected = rows.double() @ rows.double().transpose(1, 2)
    scale = float(expected.abs().amax())
    assert float((problem.bound.curvature(numbers, anchors) - expected).abs().max()) < 1e-5 * scale
    d = perturbations(problem, "twenty anchors").flatten(1)
    along = problem.bound.displacements(d)
    guesses = halfspace_multipliers(problem.bound, numbers, along, torch.full((len(numbers),), 1e-6), 0.3)
    for which, chosen, multipliers, others in guesses:
        found = problem.bound.directions(which.repeat_interleave(chosen.shape[1]), chosen.flatten())
        point = d[which].double() - torch.einsum("rk,rkd->rd", multipliers, found.view(*chosen.shape, -1).double())
        left = problem.bound.displacements(point.float(), which).scatter(
            1, torch.where(multipliers > 0, chosen, chosen[:, :1]), -torch.inf
        )
        assert float((left.amax(1) - others).abs().max()) < 1e-3


@pytest.mark.parametrize("norm", ["full", "masked"])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_goes_with_masks_and_weights(weighted: bool, norm: str) -> None:
    certify_segmented("28x28", weighted, norm, tangents=True)


@pytest.mark.parametrize("tangents", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_images_that_are_anchors_of_their_own_class(
    name: str, fixed: bool, tangents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in training: the distance to that anchor is 0, up to rounding, and must not spoil the others.

    Few anchors are left, so that masked ones pad the working sets.
    """
    if fixed:
        monkeypatch.setitem(PACES, "cpu", replace(OTHERS, rows_bytes=1 << 27))
    problem = Problem(name, num_anchors=12, tangents=tangents)
    problem.x, problem.y = problem.anchors.clone(), problem.anchor_labels
    problem.bound = problem.threat.bind(problem.x, problem.y)
    lower, upper = BOUNDS["box"](problem.x)
    d = torch.cat([problem.x[1:], problem.x[:1]]) - problem.x
    for threshold in (0.05, 0.3):
        p = problem.bound.nearest(d, threshold, lower, upper)
        assert_certified(problem, d, p, threshold, lower, upper)
    assert problem.bound.fallbacks == 0


def test_autocast_changes_neither_threat_nor_gradient() -> None:
    problem = Problem("28x28", tangents=True)
    d = perturbations(problem, "noise").requires_grad_(True)
    expected = problem.bound.evaluate(d)
    (gradient,) = torch.autograd.grad(expected.sum(), d)
    with torch.autocast("cpu", torch.bfloat16):
        value = problem.bound.evaluate(d)
        (inside,) = torch.autograd.grad(value.sum(), d)
    assert torch.equal(value, expected) and torch.equal(inside, gradient)
    along = (gradient * d).flatten(1).sum(1)  # Euler: the threat is homogeneous
    torch.testing.assert_close(along, expected, rtol=1e-5, atol=0)


def test_no_image_at_all() -> None:
    x, y = data("digits")
    bound = ProjectedDisplacement(anchors=AnchorSet(x[:50], y[:50]), tangents=True).bind(x[:0], y[:0])
    assert bound.evaluate(x[:0]).shape == (0,) and bound.project(x[:0], 0.1).shape == (0, 1, 8, 8)


def test_names() -> None:
    anchors = AnchorSet(*data("digits"))
    assert ProjectedDisplacement(anchors=anchors, tangents=True).name == "PD-T"
    assert ProjectedDisplacement(anchors=anchors, segmented=True, tangents="affine, blur").name == "PD-ST"
    assert Tangents.of("all", 0.1) == Tangents.of(True, 0.1) == Tangents.of(ALL, 0.1)
    assert Tangents.of(False, 0.1) is Tangents.of("", 0.1) is None
    with pytest.raises(UsageError, match=r"unknown tangent 'brightnes' .*brightness"):
        Tangents.of("brightnes", 0.1)
    with pytest.raises(UsageError, match=r"expected a finite number >= 0\.01"):
        Tangents.of(True, 0.001)
