"""Autocast and TF32 around the caller: the threat and its projection stay as exact as without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from problems import BOUNDS, Problem, assert_certified, perturbations
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from threat_specification import Intersection, Linf

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "mv", "dot"}
DROPPED = 13  # of float32's 23 bits of mantissa; TF32 has 10


def rounded(value: Any) -> Any:
    """Round float32 to TF32, to the nearest."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    return ((bits + (1 << (DROPPED - 1))) & -(1 << DROPPED)).view(torch.float32)


class TensorCores(TorchDispatchMode):
    """Rounds the factors of products as a GPU does while TF32 is allowed; counts them."""

    rounds = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1].rstrip("_")
        if name in PRODUCTS and torch.backends.cuda.matmul.fp32_precision == "tf32":
            self.rounds += 1
            args = tuple(rounded(each) for each in args)
        return func(*args, **(kwargs or {}))


@contextmanager
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with TensorCores() as cores:
            torch.ones(2, 2) @ torch.ones(2, 2)
            assert cores.rounds == 1
            yield
    finally:
        torch.set_float32_matmul_precision(before)


AROUND: dict[str, Callable] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "tf32": tf32,
}


@pytest.mark.parametrize("around", AROUND)
def test_projections_are_as_near_and_none_is_scaled(around: str) -> None:
    problem = Problem("3x32x32")
    d = perturbations(problem, "twenty anchors")
    lower, upper = BOUNDS["radius"](problem.x)
    with AROUND[around]():
        bound = problem.threat.bind(problem.x, problem.y)
        p = bound.project(d, 0.01, lower, upper)
        value = bound.evaluate(p)
    assert bound.fallbacks == 0
    assert_certified(problem, d, p, 0.01, lower, upper)
    assert torch.equal(value, problem.bound.evaluate(p))
    plain = problem.bound.project(d, 0.01, lower, upper)
    ratio = (p - d).flatten(1).norm(dim=1) / (plain - d).flatten(1).norm(dim=1)
    assert float((ratio - 1).abs().max()) < 1e-6


@pytest.mark.parametrize("around", AROUND)
def test_also_from_images_and_in_an_intersection(around: str) -> None:
    problem = Problem("28x28")
    both = Intersection([(problem.threat, 0.05), (Linf(), 0.1)])
    z = problem.x + perturbations(problem, "noise")
    expected = both.project(problem.x, problem.y, z, 1.0)
    scaled = problem.threat.project(problem.x, problem.y, z, 0.05, method="scale")
    with AROUND[around]():
        assert torch.equal(both.project(problem.x, problem.y, z, 1.0), expected)
        assert torch.equal(problem.threat.project(problem.x, problem.y, z, 0.05, method="scale"), scaled)
        radius = problem.threat.inscribed_radius(problem.x, problem.y)
    assert torch.equal(radius, problem.bound.inscribed_radius())


def test_the_settings_are_put_back() -> None:
    problem = Problem("28x28", batch=2)
    with tf32():
        problem.threat.bind(problem.x, problem.y).project(problem.x, 0.05)
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_precision_that_was_inherited_is_inherited_again() -> None:
    problem = Problem("28x28", batch=2)
    products = torch.backends.cuda.matmul
    before, own = torch.backends.fp32_precision, products.fp32_precision
    try:
        torch.backends.fp32_precision, products.fp32_precision = "tf32", "none"
        problem.threat.bind(problem.x, problem.y).project(problem.x, 0.05)
        assert products.fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert products.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision, products.fp32_precision = before, own
