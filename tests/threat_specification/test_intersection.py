"""Intersections of threats: the gauge, and joint projections."""

import math

import numpy
import pytest
import torch
from scipy.optimize import nnls

from foundations.errors import UsageError
from tests.threat_specification.attacks.linear import directions
from tests.threat_specification.projected_displacement.kkt import certify
from tests.threat_specification.projected_displacement.kkt import directions as kkt_directions
from threat_specification import L2, AnchorSet, Intersection, Linf, ProjectedDisplacement, intersection

SHAPE = (3, 6, 6)


def problem(batch=3):
    generator = torch.Generator().manual_seed(0)
    anchors = AnchorSet(torch.rand(24, *SHAPE, generator=generator), torch.arange(24) % 4)
    x = torch.rand(batch, *SHAPE, generator=generator)
    d = 0.4 * torch.randn(batch, *SHAPE, generator=generator)
    return ProjectedDisplacement(anchors=anchors), x, torch.arange(batch) % 4, d


def test_value_is_the_largest_relative_threat():
    pd, x, y, d = problem()
    both = Intersection([(pd, 0.2), (Linf(), 0.1), (L2(), 3.0)])
    parts = [pd.evaluate(x, y, x + d) / 0.2, Linf().evaluate(x, y, x + d) / 0.1, L2().evaluate(x, y, x + d) / 3]
    torch.testing.assert_close(both.evaluate(x, y, x + d), torch.stack(parts).amax(0))


@pytest.mark.parametrize("threshold", [0.0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("members", [("Linf",), ("PD", "Linf"), ("PD", "L2"), ("PD", "Linf", "L2"), ("L2", "L2")])
def test_projection_is_feasible(members, threshold):
    pd, x, y, d = problem()
    known = {"PD": (pd, 0.05), "Linf": (Linf(), 0.1), "L2": (L2(), 0.6)}
    both = Intersection([known[name] for name in members])
    bound = both.bind(x, y)
    p = bound.project(d, threshold)
    assert bool((p >= -x).all() & (p <= 1 - x).all())
    assert bool((bound.evaluate(p) <= threshold * (1 + 2e-6) + 1e-7).all())
    assert torch.equal(bound.project(0.5 * p, threshold), 0.5 * p)
    z = both.project(x, y, x + d, threshold)
    assert bool((z >= 0).all() & (z <= 1).all())


def test_projection_onto_two_balls_is_onto_the_smaller():
    _, x, y, d = problem()
    both = Intersection([(L2(), 1.0), (L2(), 0.5)])
    torch.testing.assert_close(both.bind(x, y).project(d, 1.0), L2().bind(x, y).project(d, 0.5), rtol=1e-4, atol=1e-5)


def normal_left_over(point, goal, directions, threshold, radius, lower, upper):
    """Relative length of what goal - point has beside the cone of normals of the bounds that it reaches: 0 by the KKT
    conditions if the point is the nearest to the goal with <p, v_j> <= t, ||p||_2 <= r, and in a box."""
    p, goal, low, high = (each.flatten().double().numpy() for each in (point, goal, lower, upper))
    walls = numpy.eye(len(p))
    normals = [
        directions[directions @ p > threshold * (1 - 1e-4)],
        p[None] / numpy.linalg.norm(p) if numpy.linalg.norm(p) > radius * (1 - 1e-4) else p[:0, None] * p[None],
        walls[p > high - 1e-6],
        -walls[p < low + 1e-6],
    ]
    return nnls(numpy.concatenate(normals).T, goal - p)[1] / numpy.linalg.norm(goal - p)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(("level", "radius", "bound"), [(0.05, 0.6, 1.0), (0.2, 0.6, 0.1), (0.1, 0.4, 1.0)])
def test_projection_into_threat_and_ball_is_the_nearest_point(beside, level, radius, bound):
    """Of half-spaces, l2 ball, l-inf ball and pixels; also in a box around another point than 0."""
    pd, x, y, d = problem()
    both = Intersection([(pd, level), (L2(), radius), (Linf(), bound), (L2(), 2 * radius)]).bind(x, y)
    rows = [directions(pd.anchors, x[i], int(y[i])) for i in range(len(x))]
    lower, upper = (-x).clamp_min(-bound), (1 - x).clamp_max(bound)
    if beside:
        centre = 0.02 * torch.randn(d.shape, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
        centre = both.project(centre, 0.5)
        lower, upper = torch.maximum(centre - 0.04, lower), torch.minimum(centre + 0.04, upper)
        point, found = both.project_beside(d, 1.0, lower, upper, centre)
        assert bool(found.all())
    else:
        point = both.project(d, 1.0)
    for i, directed in enumerate(rows):
        assert normal_left_over(point[i], d[i], directed, level, radius, lower[i], upper[i]) < 1e-3
        assert bool((point[i] >= lower[i]).all() & (point[i] <= upper[i]).all())
    assert bool((both.evaluate(point) <= 1 + 2e-6).all())


def test_empty_batch():
    pd, x, y, _ = problem()
    both = Intersection([(pd, 0.05), (L2(), 0.6), (Linf(), 0.1)])
    assert both.project(x[:0], y[:0], x[:0]).shape == (0, *SHAPE)
    assert both.evaluate(x[:0], y[:0], x[:0]).shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_raise(bad):
    pd, x, y, d = problem()
    d[1, 0, 0, 0] = bad
    for members in ([(Linf(), 0.1)], [(pd, 0.1), (Linf(), 0.1)], [(pd, 0.1), (L2(), 0.1)]):
        bound = Intersection(members).bind(x, y)
        for call in (lambda b=bound: b.evaluate(d), lambda b=bound: b.project(d, 1.0)):
            with pytest.raises(UsageError, match="finite"):
                call()


def arrays_of(anchors):
    return anchors.images.flatten(1).numpy(), anchors.labels.numpy()


def forms():
    """PD, a weighted and a segmented form, each with anchors of its own; and what their directions are made of."""
    pd, x, y, d = problem()
    generator = torch.Generator().manual_seed(3)
    own = [AnchorSet(torch.rand(9, *SHAPE, generator=generator), torch.arange(9) % 4) for _ in range(2)]
    weights, masks = 0.3 + torch.rand(4, 4, generator=generator), torch.zeros(3, *SHAPE, dtype=torch.bool)
    masks[..., 1:5, 2:6] = True
    threats = [
        pd,
        ProjectedDisplacement(anchors=own[0], weighted=True, class_weights=weights),
        ProjectedDisplacement(anchors=own[1], segmented=True, background="radius"),
    ]
    made = [
        [
            kkt_directions(
                x[i].flatten().numpy(),
                int(y[i]),
                *arrays_of(threat.anchors),
                used,
                masks[i].flatten().numpy() if seen else None,
            )
            for threat, used, seen in zip(threats, (None, weights.numpy(), None), (False, False, True), strict=True)
        ]
        for i in range(3)
    ]
    return threats, x, y, d, masks, made


@pytest.mark.parametrize("size", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("threshold", [0.001, 0.1, 1.0])
def test_several_exact_threats_are_one(threshold, size):
    """They took turns, a hundred times at most: at small thresholds the point went a fifth of the way that it can."""
    threats, x, y, d, masks, made = forms()
    levels, bound = (0.1, 0.07, 0.04), 0.3
    whole = Intersection([*zip(threats, levels, strict=True), (Linf(), bound / threshold)]).bind(x, y, masks=masks)
    point = whole.project(size * d, threshold)
    assert bool((whole.evaluate(point) <= threshold * (1 + 2e-6)).all()) and not whole.scaled.any()
    lower, upper = (-x).clamp_min(-bound), (1 - x).clamp_max(bound)
    for i, directed in enumerate(made):
        rows = numpy.concatenate([each / level for each, level in zip(directed, levels, strict=True)])
        parts = (each[i].flatten().numpy() for each in (size * d, point, lower, upper))
        found = certify(rows, threshold, *parts)
        assert found.excess <= 1e-5 * threshold + 1e-7 and found.residual < 1e-3 and abs(found.gap) < 1e-5, found
        assert found.active > 0


def test_members_that_take_turns_in_vain_are_told(monkeypatch):
    """A point of the set stood for the nearest one without a word."""
    pd, x, y, d = problem()
    other = ProjectedDisplacement(anchors=AnchorSet(1 - pd.anchors.images, pd.anchors.labels))
    nested = Intersection([(Intersection([(pd, 0.05)]), 1.0), (Intersection([(other, 0.05)]), 1.0)])
    patient, hasty = nested.bind(x, y), nested.bind(x, y)
    nearest = patient.project(d, 1.0)
    assert patient.joined is None and not patient.scaled.any()
    at_once = Intersection([(pd, 0.05), (other, 0.05)]).bind(x, y).project(d, 1.0)
    torch.testing.assert_close(nearest, at_once, rtol=0, atol=2e-4)
    monkeypatch.setattr(intersection, "DYKSTRA_ROUNDS", 2)
    point = hasty.project(d, 1.0)
    assert bool((hasty.evaluate(point) <= 1 + 2e-6).all()) and hasty.scaled.tolist() == [1, 1, 1]


def test_a_projection_does_not_depend_on_the_images_beside_it():
    """Two threats took turns until the slowest image of the batch was done, which moved all others further."""
    pd, x, y, d = problem(batch=6)
    other = ProjectedDisplacement(anchors=AnchorSet(1 - pd.anchors.images, pd.anchors.labels))
    both = Intersection([(Intersection([(pd, 0.05)]), 1.0), (Intersection([(other, 0.05)]), 1.0)])
    together = both.bind(x, y).project(d, 1.0)
    for i in range(6):
        alone = both.bind(x[i : i + 1], y[i : i + 1]).project(d[i : i + 1], 1.0)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=5e-7)


def test_unfit_members_are_refused():
    with pytest.raises(UsageError, match="at least one"):
        Intersection([])
    for level in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="expected"):
            Intersection([(L2(), level)])


def test_prepare_reaches_the_members():
    pd = problem()[0]
    both = Intersection([(pd, 0.1), (Linf(), 0.1)])
    assert both.prepare(num_devices=3) is both
    assert len(pd.matrix.parts) == 3


def test_a_background_that_no_member_counts_is_free():
    """As without the intersection; another member that counts it bounds it."""
    pd, x, y, d = problem()
    free = ProjectedDisplacement(anchors=pd.anchors, segmented=True, mask_source="center", background="free")
    lower, upper = (-x).clamp_min(-0.05), (1 - x).clamp_max(0.05)
    alone, one = (threat.bind(x, y) for threat in (free, Intersection([(free, 1.0)])))
    assert torch.equal(one.counted, alone.counted)
    expected = alone.project(d, 0.1, lower, upper)
    assert torch.equal(one.project(d, 0.1, lower, upper), expected) and float(expected.abs().max()) > 0.3
    both = Intersection([(free, 1.0), (Linf(), 5.0)]).bind(x, y)
    assert both.counted is None and float(both.project(d, 0.1, lower, upper).abs().max()) <= 0.05 + 1e-6


def test_points_that_a_member_could_not_solve_are_counted():
    pd, x, y, _ = problem()
    bound = Intersection([(pd, 0.2), (Intersection([(pd, 1.0), (L2(), 1.0)]), 1.0)]).bind(x, y)
    assert bound.scaled.tolist() == [0, 0, 0]
    bound.members[0][0].scaled += torch.tensor([1, 0, 2])
    bound.members[1][0].members[0][0].scaled += torch.tensor([0, 4, 1])
    assert bound.scaled.tolist() == [1, 4, 3]
