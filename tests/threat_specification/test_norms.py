"""The isotropic threats against definitions and optimality conditions."""

import math

import pytest
import torch

from foundations.errors import UsageError
from threat_specification import L2, Linf

SHAPE = (3, 5, 5)


def problem(batch=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, *SHAPE, generator=generator)
    return x, torch.zeros(batch, dtype=torch.long), 0.5 * torch.randn(batch, *SHAPE, generator=generator)


@pytest.mark.parametrize("threat,order", [(L2(), 2), (Linf(), math.inf)])
def test_norm(threat, order):
    x, y, d = problem()
    expected = torch.linalg.vector_norm(d.double().flatten(1), order, dim=1)
    torch.testing.assert_close(threat.evaluate(x, y, x + d).double(), expected, rtol=1e-5, atol=1e-6)
    assert threat.evaluate(x.half(), y, (x + d).half()).dtype == torch.float32


@pytest.mark.parametrize("threat", [L2(), Linf()])
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.3, 2.0, 100.0])
def test_projection_is_feasible_and_keeps_what_is_feasible(threat, threshold):
    x, y, d = problem()
    bound = threat.bind(x, y)
    p = bound.project(d, threshold)
    assert bool((p >= -x).all() & (p <= 1 - x).all())
    assert bool((bound.evaluate(p) <= threshold * (1 + 1e-6)).all())
    assert torch.equal(bound.project(p, threshold), p)
    z = threat.project(x, y, x + d, threshold)
    assert bool((z >= 0).all() & (z <= 1).all())
    assert torch.equal(threat.project(x, y, z, threshold * (1 + 1e-5) + 1e-6), z)


def test_l2_projection_is_the_nearest_point():
    """KKT: p = clip(d / (1 + l)) with l > 0 only where the ball binds."""
    x, y, d = problem()
    p = L2().bind(x, y).project(d, 1.5).double()
    clipped = torch.minimum(torch.maximum(d, -x), 1 - x).double()
    for i in range(len(x)):
        inside = (p[i] > -x[i] + 1e-7) & (p[i] < 1 - x[i] - 1e-7)
        shares = (p[i] / d[i])[inside]
        if clipped[i].norm() <= 1.5:
            assert torch.equal(p[i], clipped[i])
        else:
            assert float(p[i].norm()) == pytest.approx(1.5, rel=1e-6)
            assert float(shares.max() - shares.min()) < 1e-5 and float(shares.max()) < 1
            assert bool((p[i] == torch.minimum(torch.maximum(shares.mean() * d[i], -x[i]), 1 - x[i]))[~inside].all())


@pytest.mark.parametrize("tail", [1, 5], ids=["normal", "heavy tails"])
@pytest.mark.parametrize("threshold", [1e-3, 0.5, 2.0])
def test_l2_factor_is_that_of_bisection(tail, threshold):
    """The largest s <= 1 with ||clip(s d)|| <= threshold, by halving in float64; bounds differ from pixel to pixel."""
    x, y, d = problem()
    d = d.sign() * d.abs() ** tail
    generator = torch.Generator().manual_seed(4)
    lower, upper = (-0.3 * torch.rand(x.shape, generator=generator) ** 3, torch.rand(x.shape, generator=generator) ** 3)
    p = L2().bind(x, y).project(d, threshold, lower, upper)
    for i in range(len(x)):
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            fits = (middle * d[i].double()).clamp(lower[i].double(), upper[i].double()).norm() <= threshold
            low, high = (middle, high) if fits else (low, middle)
        expected = (low * d[i].double()).clamp(lower[i].double(), upper[i].double())
        torch.testing.assert_close(p[i].double(), expected, rtol=1e-6, atol=1e-12)
        assert float(p[i].double().norm()) <= threshold


@pytest.mark.parametrize("threat", [L2(), Linf()])
def test_another_shape_raises(threat):
    x, y, d = problem()
    with pytest.raises(UsageError, match="delta: expected shape"):
        threat.bind(x, y).project(d[:1], 0.1)


@pytest.mark.parametrize("threat", [L2(), Linf()])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_raise(threat, bad):
    x, y, d = problem()
    d[2, 0, 0, 0] = bad
    bound = threat.bind(x, y)
    for call in (
        lambda: bound.evaluate(d),
        lambda: bound.project(d, 0.1),
        lambda: threat.evaluate(x, y, x + d),
        lambda: threat.project(x, y, x + d),
    ):
        with pytest.raises(UsageError, match="finite"):
            call()


@pytest.mark.parametrize("threat", [L2(), Linf()])
def test_empty_batch(threat):
    x, y, d = problem(batch=0)
    assert threat.evaluate(x, y, x + d).shape == (0,)
    assert threat.project(x, y, x + d).shape == (0, *SHAPE)
