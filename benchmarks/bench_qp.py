"""The exact projection against a general solver of quadratic programs (ProxQP, float64): speed, and distance errors.

Also the size of ImageNet: does it run, within what memory, and do the conditions of optimality hold.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bench_projection import SHAPE, bind, cold, median_seconds, towards, wide, within

SOLVER_ACCURACY = 1e-10
Row = tuple[str, float, str, str]


def constraints(bound, example: int) -> numpy.ndarray:
    """V, [N, D] float64: all anchors of other classes, written out."""
    numbers = (~bound.masked[example]).nonzero().flatten()
    x = bound.examples[example].flatten().double()
    difference = bound.matrix.rows(numbers).double() - x
    return (difference / (0.5 * difference.square().sum(1, keepdim=True))).numpy()


def dual_by_solver(rows: numpy.ndarray, delta: numpy.ndarray, threshold: float) -> tuple[numpy.ndarray, float]:
    """Nearest point of {V p <= threshold} through its dual, the smaller problem; and the seconds from V to p."""
    import proxsuite

    start = time.perf_counter()
    count, gram = len(rows), rows @ rows.T
    result = proxsuite.proxqp.dense.solve(
        gram, threshold - rows @ delta, None, None, numpy.eye(count), numpy.zeros(count), None, eps_abs=1e-6
    )
    nearest = delta - rows.T @ result.x
    return nearest, time.perf_counter() - start


def primal_by_solver(rows, delta, threshold: float, lower, upper) -> numpy.ndarray:
    """Nearest point of {V p <= threshold, lower <= p <= upper} in float64."""
    import proxsuite

    size = len(delta)
    every = numpy.vstack([rows, numpy.eye(size)])
    low = numpy.concatenate([numpy.full(len(rows), -1e20), lower])
    high = numpy.concatenate([numpy.full(len(rows), threshold), upper])
    result = proxsuite.proxqp.dense.solve(
        numpy.eye(size), -delta, None, None, every, low, high, eps_abs=SOLVER_ACCURACY, max_iter=10_000
    )
    return result.x


def primal_seconds(rows: numpy.ndarray, delta: numpy.ndarray, threshold: float) -> float:
    """The same problem as it is written: D variables."""
    import proxsuite

    start = time.perf_counter()
    identity = numpy.eye(len(delta))
    proxsuite.proxqp.dense.solve(
        identity, -delta, None, None, rows, None, numpy.full(len(rows), threshold), eps_abs=1e-6
    )
    return time.perf_counter() - start


def speed() -> list[Row]:
    """Seconds of the solver for an example over ours in a batch of 128."""
    bound = bind(500)
    anchors = bound.matrix.rows(torch.arange(500)).view(500, *SHAPE)
    delta = towards(bound, anchors, 2, 0.6)
    ours = median_seconds(cold(bound, delta, 0.3, *wide(bound.examples))) / len(delta)
    flat = delta.flatten(1).double().numpy()
    taken = [dual_by_solver(constraints(bound, i), flat[i], 0.3)[1] for i in range(5)]
    primal = primal_seconds(constraints(bound, 0), flat[0], 0.3)
    return [
        ("exact vs ProxQP, an example, D=3072 N=500 (x)", primal / ours, "200", "1000"),
        ("exact vs ProxQP on the dual, which we wrote out for it (x)", sorted(taken)[2] / ours, "200", "1000"),
    ]


def distance_error(radius: float, examples: int = 4) -> Row:
    """Largest relative error of ||p - delta|| against the solver's, with per-pixel bounds."""
    shape = (3, 12, 12)
    bound = bind(200, 32, shape)
    anchors = bound.matrix.rows(torch.arange(200)).view(200, *shape)
    delta = towards(bound, anchors, 4, 0.8)
    lower, upper = within(bound.examples, radius)
    found = cold(bound, delta, 0.1, lower, upper)()
    errors = []
    for i in range(examples):
        d, p, low, high = (t[i].flatten().double().numpy() for t in (delta, found, lower, upper))
        best = numpy.linalg.norm(primal_by_solver(constraints(bound, i), d, 0.1, low, high) - d)
        errors.append(abs(numpy.linalg.norm(p - d) - best) / best)
    return (
        f"relative distance error vs ProxQP in float64, D=432 N=200, radius {radius:.3g}",
        max(errors),
        "1e-5",
        "1e-7",
    )


def imagenet_size() -> list[Row]:
    """D = 150,528, N = 2,000 uint8 anchors, B = 8: optimality, and the peak of the whole process."""
    shape = (3, 224, 224)
    bound = bind(2000, 8, shape)
    picks = torch.randint(0, 2000, (8, 6), generator=torch.Generator().manual_seed(3))
    goal = torch.stack([bound.matrix.rows(row).mean(0).view(shape) for row in picks]) - bound.examples
    delta = goal + 0.02 * torch.randn(goal.shape, generator=torch.Generator().manual_seed(4))
    lower, upper = within(bound.examples, 32 / 255)
    start = time.perf_counter()
    found = cold(bound, delta, 0.05, lower, upper)()
    seconds = time.perf_counter() - start
    worst = max(optimality(bound, i, delta, found, lower, upper, 0.05) for i in range(8))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    binding = int((bound.warm.multipliers > 0).sum(1).max())
    title = f"exact at D=150528 N=2000 B=8, at most {binding} anchors bind, {seconds:.1f} s"
    return [(f"{title}: KKT residual", worst, "1e-4", "-"), (f"{title}: peak memory in GiB", peak, "6", "-")]


def optimality(bound, i: int, delta: Tensor, found: Tensor, lower: Tensor, upper: Tensor, threshold: float) -> float:
    """Distance of delta - p from the cone of tight constraints and bounds, relative; by scipy's NNLS."""
    from scipy.optimize import nnls

    d, p, low, high = (t[i].flatten().double() for t in (delta, found, lower, upper))
    rows = torch.from_numpy(constraints_near(bound, i, p, threshold))
    residual, free = d - p, (p > low) & (p < high)
    multipliers = nnls(rows[:, free].T.numpy(), residual[free].numpy())[0] if len(rows) else numpy.zeros(0)
    rest = residual - torch.from_numpy(multipliers) @ rows
    wrong = torch.where(free, rest.abs(), torch.where(p == low, rest.clamp_min(0), (-rest).clamp_min(0)))
    return float(wrong.norm() / residual.norm())


def constraints_near(bound, i: int, point: Tensor, threshold: float) -> numpy.ndarray:
    """The rows of V that hold with equality at a point, [M, D] float64."""
    along = bound.displacements(point.float().unsqueeze(0), torch.tensor([i]))[0]
    tight = (along > threshold * (1 - 1e-3)).nonzero().flatten()
    exact = bound.directions(torch.full_like(tight, i), tight).double()
    return exact[(exact @ point) > threshold * (1 - 1e-4)].numpy()


def rows() -> list[Row]:
    """(case, measured, floor, aim)."""
    return [*speed(), distance_error(1.0), distance_error(32 / 255), *imagenet_size()]
