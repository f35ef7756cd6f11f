"""The set of mixtures of safe changes plus noise, against linear programs, certificates and loops in float64."""

from __future__ import annotations

import numpy
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from foundations.errors import UsageError
from tests.threat_specification.projected_displacement import kkt
from tests.threat_specification.safe_moves.problems import COUNT, Problem
from threat_specification import L2, Intersection, Linf, ProjectedDisplacement
from threat_specification.attacks.base import AttackSet
from threat_specification.attacks.pgd import cosine, descend
from threat_specification.attacks.starts import STARTS
from threat_specification.safe_moves.mixtures import BoundMixtures, MixtureSet, SafeMoves
from threat_specification.safe_moves.simplex import capped_simplex

RADIUS = 0.08


def far_points(allowed: MixtureSet) -> list[Tensor]:
    """Points outside the set in many ways."""
    torch.manual_seed(0)
    noise = [0.3 * torch.randn(allowed.lower.shape) * allowed.bound.unit.mean() for _ in range(3)]
    return [*noise, 3 * allowed.upper, allowed.lower, -allowed.upper]


@pytest.mark.parametrize("cap", [0.3, 1.0])
def test_the_capped_simplex_against_a_quadratic_program(cap: float) -> None:
    torch.manual_seed(0)
    points = torch.cat([torch.randn(20, 5), 0.1 * torch.rand(5, 5), 5 + torch.rand(3, 5), torch.zeros(1, 5)])
    for point, found in zip(points, capped_simplex(points, cap), strict=True):
        target = point.double().numpy()
        constraint = {"type": "ineq", "fun": lambda c: cap - c.sum()}
        start, options = numpy.full(5, cap / 5), {"ftol": 1e-14, "maxiter": 500}
        objective = lambda c, target=target: ((c - target) ** 2).sum()  # noqa: E731
        best = minimize(objective, start, bounds=[(0, None)] * 5, constraints=constraint, options=options).x
        assert numpy.abs(best - found.numpy()).max() < 1e-5
        assert float(found.sum()) <= cap * (1 + 1e-6) and float(found.min()) >= 0


@pytest.mark.parametrize("threshold", [0.05, 0.15, 0.6])
@pytest.mark.parametrize("radius", [0.0, RADIUS])
def test_points_are_inside_in_float64(threshold: float, radius: float) -> None:
    problem = Problem()
    allowed = MixtureSet.of(problem.moves, threshold, radius)
    points = [allowed.project(point) for point in far_points(allowed)]
    points += [start(allowed, 0, torch.arange(COUNT), 3) for start in STARTS.values()]
    up = torch.ones(COUNT, 1, 1, 1, dtype=torch.bool)
    window = allowed.with_window(points[0], up.expand(-1, 1, 8, 8), up, torch.linspace(0, 0.99, COUNT))
    for point in [*points, allowed.project(window)]:
        assert bool(allowed.holds(point).all())
        problem.assert_inside(*allowed.bound.parts(point), threshold, radius)
    levels = torch.linspace(0.1, 3, COUNT)
    point = allowed.project_to_level(far_points(allowed)[0], levels)
    assert bool((allowed.bound.evaluate(point) <= levels * (1 + 1e-5) + 1e-6).all())


@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_the_noise_is_the_nearest_for_its_mixture(threshold: float) -> None:
    problem = Problem()
    allowed = MixtureSet.of(problem.moves, threshold, RADIUS)
    target = far_points(allowed)[0]
    noise, weights = allowed.bound.parts(allowed.project(target))
    wanted = allowed.bound.parts(target)[0]
    for i in range(COUNT):
        x, mixture = problem.x[i].flatten().double().numpy(), weights[i].double().numpy() @ problem.shifts(i)
        low, high = numpy.maximum(mixture - RADIUS, -x), numpy.minimum(mixture + RADIUS, 1 - x)
        n, goal = noise[i].flatten().double().numpy(), wanted[i].flatten().double().numpy()
        # Rounding of float32 moves bounds; a pixel within it is at its bound.
        point = mixture + n
        point = numpy.where(point <= low + 2e-7, low, numpy.where(point >= high - 2e-7, high, point))
        certificate = kkt.certify(problem.rows(i), threshold, mixture + goal, point, low, high)
        assert certificate.excess <= 1e-5 * threshold + 1e-7
        assert certificate.residual < 1e-4 and certificate.gap < 1e-5


@pytest.mark.parametrize("far", [1, 3])
def test_noise_and_weights_are_the_nearest_together(far: int) -> None:
    """With the pixel box away: half-spaces of the anchors and of the weights' sum, certified with the box."""
    problem, threshold = Problem(inner=0.35), 0.4
    allowed = MixtureSet.of(problem.moves, threshold, 0.02)
    bound, target = allowed.bound, far_points(allowed)[far]
    found, active = allowed.project(target).flatten(1).double().numpy(), 0
    for i in range(COUNT):
        unit, rows = float(bound.unit[i]), problem.rows(i)
        lifted = numpy.hstack([rows, rows @ problem.shifts(i).T / unit])
        total = numpy.concatenate([numpy.zeros(64), numpy.full(5, threshold / unit)])
        low, high = (side[i].flatten().double().numpy() for side in (allowed.lower, allowed.upper))
        point = numpy.where(numpy.abs(found[i] - low) < 1e-6, low, found[i])
        point = numpy.where(numpy.abs(found[i] - high) < 1e-6, high, point)
        every = numpy.vstack([lifted, total])
        certificate = kkt.certify(every, threshold, target[i].flatten().double().numpy(), point, low, high)
        assert certificate.residual < 2e-3 and certificate.gap < 1e-3, (i, certificate)
        active = max(active, certificate.active)
    assert active >= 2


@pytest.mark.parametrize(("threshold", "radius"), [(0.15, RADIUS), (0.3, 0.02), (0.15, 0.0), (5.0, RADIUS)])
def test_steps_reach_the_optimum_of_a_linear_function(threshold: float, radius: float) -> None:
    """A linear program knows it; noise and mixture trade the threat and the pixel box between them."""
    problem = Problem()
    allowed = MixtureSet.of(problem.moves, threshold, radius)
    torch.manual_seed(1)
    gain = torch.randn(problem.x.shape)
    best, value = torch.full((COUNT,), -torch.inf), lambda p: (gain * allowed.bound.change(p)).flatten(1).sum(1)

    def gradient_at(delta: Tensor) -> tuple[Tensor, None]:
        nonlocal best
        best = torch.maximum(best, value(delta))
        return allowed.pull_back(gain, delta), None

    last = descend(gradient_at, allowed, allowed.origin, 60, 2 * allowed.reach, 0.9, cosine)
    best = torch.maximum(best, value(last))
    optimum = torch.tensor([problem.largest(gain[i], i, threshold, radius) for i in range(COUNT)])
    assert bool((best <= optimum + 1e-4).all())
    share = (best / optimum)[optimum > 0.1]  # without noise, no change may help
    assert len(share) > COUNT / 2
    assert float(share.mean()) > 0.98 and float(share.min()) > 0.9, share


def test_an_empty_set_is_seen_and_a_thin_one_is_solved() -> None:
    """Around mixtures beyond the threat, noise may or may not make up for it: linear programs know when."""
    problem = Problem()
    mixture = problem.moves.mixture(torch.full((COUNT, 5), 0.2))
    lower = torch.maximum(mixture - RADIUS, -problem.x)
    upper = torch.minimum(mixture + RADIUS, 1 - problem.x)
    smallest = []
    for i in range(COUNT):
        rows = problem.rows(i)
        left = numpy.hstack([rows, -numpy.ones((len(rows), 1))])  # <p, v_j> <= t, with the smallest t
        box = [*zip(lower[i].flatten().tolist(), upper[i].flatten().tolist(), strict=True), (0, None)]
        smallest.append(linprog([*numpy.zeros(64), 1], left, numpy.zeros(len(rows)), bounds=box).fun)
    for i, threshold in enumerate(smallest):
        for factor, expected in ((0.98, False), (1.02, True)):
            point, found = problem.bound.project_beside(mixture, factor * threshold, lower, upper, mixture)
            assert bool(found[i]) == expected, (i, factor)
            if expected:
                assert float((problem.rows(i) @ point[i].flatten().double().numpy()).max()) <= 1.0201 * threshold
    assert min(smallest) > 0


def test_without_changes_it_is_the_set_of_pixels() -> None:
    problem = Problem()
    still = SafeMoves(problem.bound, problem.x.unsqueeze(1))
    allowed, plain = MixtureSet.of(still, 0.1, RADIUS), AttackSet.within(problem.bound, 0.1, RADIUS)
    torch.manual_seed(0)
    delta = 0.2 * torch.randn(problem.x.shape)
    point = allowed.bound.join(delta, torch.zeros(COUNT, 1))
    assert torch.allclose(allowed.bound.change(allowed.project(point)), plain.project(delta), atol=2e-6)


def test_the_gradient_is_that_of_the_image() -> None:
    """By differences, where no pixel is at its end."""
    problem = Problem(inner=0.35)
    allowed = MixtureSet.of(problem.moves, 1.0, 0.02)
    torch.manual_seed(0)
    gain, point = torch.randn(problem.x.shape), allowed.project(far_points(allowed)[0])
    gradient = allowed.pull_back(gain, point).flatten(1)
    value = lambda p: (gain.double() * allowed.image(p).double()).flatten(1).sum(1)  # noqa: E731
    for place in (0, 30, 63, 64, 66, 68):
        step = torch.zeros_like(point)
        step[..., place] = 1e-3
        slope = (value(point + step) - value(point - step)) / 2e-3
        assert torch.allclose(slope.float(), gradient[:, place], atol=2e-3)


def test_another_threat_and_the_scaled_projection_stay_inside() -> None:
    problem = Problem()
    scaled = ProjectedDisplacement(anchors=problem.anchors, projection="scale").bind(problem.x, problem.y)
    for bound, threshold in ((scaled, 0.1), (L2().bind(problem.x, problem.y), 0.5)):
        allowed = MixtureSet.of(SafeMoves(bound, problem.changed), threshold, RADIUS)
        for point in far_points(allowed):
            assert bool(allowed.holds(allowed.project(point)).all())


def test_in_an_l2_ball_the_noise_is_the_nearest() -> None:
    """In an l2 ball and the box of noise around a mixture: clip(target / (1 + l)) with one multiplier l >= 0."""
    problem = Problem()
    bound, weights = L2().bind(problem.x, problem.y), torch.full((COUNT, 5), 0.06)
    mixture = problem.moves.mixture(weights)
    threshold = 1.3 * float(mixture.flatten(1).norm(dim=1).max())
    lower, upper = torch.maximum(mixture - RADIUS, -problem.x), torch.minimum(mixture + RADIUS, 1 - problem.x)
    target = mixture + 3 * RADIUS * torch.randn(mixture.shape, generator=torch.Generator().manual_seed(0)).sign()
    point, found = bound.project_beside(target, threshold, lower, upper, mixture)
    assert bool(found.all() & (point >= lower).all() & (point <= upper).all())
    assert bool((bound.evaluate(point) <= threshold).all())
    binding = 0
    for one in zip(point, target, lower, upper, strict=True):
        p, goal, low, high = (each.flatten().double().numpy() for each in one)
        at = lambda multiplier: numpy.clip(goal / (1 + multiplier), low, high)  # noqa: B023, E731
        few, many = 0.0, 1e6
        for _ in range(200):
            middle = (few + many) / 2
            few, many = (middle, many) if numpy.linalg.norm(at(middle)) > threshold else (few, middle)
        best = numpy.linalg.norm(at(many) - goal)
        assert numpy.linalg.norm(p - goal) <= (1 + 1e-5) * best
        binding += many > 1e-6
    assert binding > COUNT // 2


def test_in_several_threats_the_noise_is_next_to_the_nearest() -> None:
    """The nearest point is that of the stricter one of a pair; two that take turns with the box come close to it."""
    problem = Problem()
    mixture = problem.moves.mixture(torch.full((COUNT, 5), 0.06))
    threshold = 1.3 * float(problem.bound.evaluate(mixture).max())
    lower, upper = torch.maximum(mixture - RADIUS, -problem.x), torch.minimum(mixture + RADIUS, 1 - problem.x)
    target = mixture + 3 * RADIUS * torch.randn(mixture.shape, generator=torch.Generator().manual_seed(0)).sign()
    threat = ProjectedDisplacement(anchors=problem.anchors)
    nested = [(Intersection([(threat, level)]), 1.0) for level in (threshold, 2 * threshold)]
    for members, room in (([(threat, threshold), (threat, 2 * threshold)], 1e-5), (nested, 0.03)):
        both = Intersection(members).bind(problem.x, problem.y)
        point, found = both.project_beside(target, 1.0, lower, upper, mixture)
        nearest, _ = problem.bound.project_beside(target, threshold, lower, upper, mixture)
        assert bool(found.all() & (point >= lower).all() & (point <= upper).all())
        assert bool((both.evaluate(point) <= 1 + 1e-6).all())
        far, least = ((each - target).flatten(1).norm(dim=1) for each in (point, nearest))
        assert bool((far <= (1 + room) * least).all())


def test_masks_of_members_are_seen() -> None:
    """A frozen background, which no mixture of changes of whole images leaves as it is."""
    problem = Problem()
    frozen = ProjectedDisplacement(anchors=problem.anchors, segmented=True, mask_source="center")
    both = Intersection([(Intersection([(frozen, 0.3)]), 1.0), (Linf(), 0.5)])
    with pytest.raises(UsageError, match=r"expected background='radius'.*got 'frozen'"):
        SafeMoves(both.bind(problem.x, problem.y), problem.changed)


def test_wrong_changes_are_refused() -> None:
    problem = Problem()
    for wrong in (problem.changed[:, :0], problem.changed[1:], problem.changed + 0.5, problem.changed * torch.nan):
        with pytest.raises(UsageError, match="safe changes"):
            SafeMoves(problem.bound, wrong)
    masks = torch.ones(COUNT, 1, 8, 8, dtype=torch.bool)
    for background in ("frozen", "free"):
        threat = ProjectedDisplacement(
            anchors=problem.anchors, segmented=True, mask_source=lambda x: masks, background=background
        )
        with pytest.raises(UsageError, match=f"got '{background}'"):
            SafeMoves(threat.bind(problem.x, problem.y, masks=masks), problem.changed)


def test_the_gauge_grows_with_each_bound() -> None:
    problem = Problem()
    bound = BoundMixtures(problem.moves, 0.2, RADIUS)
    nothing, some = torch.zeros(COUNT, 5), torch.full((COUNT, 5), 0.1)
    noise = torch.full_like(problem.x, RADIUS / 2)
    assert torch.allclose(bound.evaluate(bound.join(0 * noise, nothing)), torch.zeros(COUNT))
    halves = bound.evaluate(bound.join(noise, some))
    threat = problem.bound.evaluate(noise + problem.moves.mixture(some)) / 0.2
    assert torch.allclose(halves, threat.clamp_min(0.5), rtol=1e-5)
