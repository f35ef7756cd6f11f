"""Batched solution of many small nonnegative least squares problems.

Shapes: R problems, K variables each.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIGN = 1e-9  # values below minus this fraction of the largest entry count as negative
RIDGE = 1e-10  # relative to the diagonal, so that a Cholesky factor exists for nearly dependent rows
EXCHANGES = 12  # most block exchanges; problems that need more usually cycle
FEW = 2  # free variables are few if there are at most one in so many
CHANGES = 4  # most changes of single variables, in units of K + 8


def nnls(hessian: Tensor, linear: Tensor, start: Tensor) -> Tensor:
    """argmin over u >= 0 of 1/2 u^T H u - b^T u, [R, K] float64.

    hessian  [R, K, K] positive semidefinite, with a positive diagonal
    linear   [R, K] b
    start    [R, K] an initial guess, at least 0; it affects the time, not the solution

    Block principal pivoting (Judice and Pires 1994) usually ends after two or three exchanges, each O(K^3). It may
    cycle if H is nearly singular. Such problems are solved by the active-set method of Lawson and Hanson (1974), which
    starts from the guess, decreases the objective at every change, and terminates.
    """
    scale, scaled = _with_unit_diagonal(hessian)
    linear = linear * scale
    solution, solved = _block_pivoting(scaled, linear, start / scale)
    if not bool(solved.all()):
        left = ~solved
        solution[left] = _active_set(scaled[left], linear[left], start[left] / scale[left])
    return solution * scale


def nnls_of_fixed_length(hessian: Tensor, linear: Tensor, start: Tensor, exchanges: int) -> Tensor:
    """The same after a given number of block exchanges, which may be too few, without a look at any result."""
    scale, scaled = _with_unit_diagonal(hessian)
    linear, start = linear * scale, start / scale
    tolerance = SIGN * linear.abs().amax(1, keepdim=True)
    free = (start > 0) | (linear > _product(scaled, start))
    solution, wrong = _exchange(scaled, linear, tolerance, free)
    for _ in range(exchanges - 1):
        free = free ^ wrong
        solution, wrong = _exchange(scaled, linear, tolerance, free)
    return solution.clamp_min_(0).mul_(scale)


def _with_unit_diagonal(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """The factors [R, K] of rows and columns that make the diagonal 1, and the matrix with them and a ridge."""
    scale = hessian.diagonal(dim1=1, dim2=2).rsqrt()
    scaled = hessian * scale.unsqueeze(1) * scale.unsqueeze(2)
    scaled.diagonal(dim1=1, dim2=2).add_(RIDGE)
    return scale, scaled


def _exchange(hessian: Tensor, linear: Tensor, tolerance: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum over the free variables, [R, K], and the variables that are on the wrong side, [R, K] bool."""
    solution = _solve_free(hessian, linear, free)
    slope = _product(hessian, solution) - linear
    floor = -SIGN * solution.abs().amax(1, keepdim=True)
    return solution, torch.where(free, solution < floor, slope < -tolerance)


def _block_pivoting(hessian: Tensor, linear: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Exchange all variables of the wrong sign at once, until there are none.

    Returns the points [R, K], and [R] bool, True for those that are solutions.
    """
    tolerance = SIGN * linear.abs().amax(1, keepdim=True)
    free = (start > 0) | (linear > _product(hessian, start))
    found, solved = torch.zeros_like(linear), torch.zeros_like(free[:, 0])
    live = torch.arange(len(linear), device=linear.device)
    for _ in range(EXCHANGES):
        solution, wrong = _exchange(hessian, linear, tolerance, free)
        found[live] = solution.clamp_min(0)
        going = wrong.any(1).nonzero().squeeze(1)
        if len(going) < len(live):
            solved[live] = ~wrong.any(1)
            if not len(going):
                break
            # Continue with the unsolved problems only.
            live, hessian, linear, tolerance, free, wrong = (
                value[going] for value in (live, hessian, linear, tolerance, free, wrong)
            )
        free = free ^ wrong
    return found, solved


def _active_set(hessian: Tensor, linear: Tensor, point: Tensor) -> Tensor:
    """The active-set method of Lawson and Hanson.

    Go towards the minimum over the free variables; if a variable reaches 0 on the way, stop there and fix it. At such a
    minimum, free the variable along which the objective decreases most.
    """
    tolerance = SIGN * linear.abs().amax(1)
    free = point > 0
    barred = torch.zeros_like(free)
    for _ in range(CHANGES * (8 + linear.shape[1])):
        target = _solve_few(hessian, linear, free)
        floor = -SIGN * target.abs().amax(1, keepdim=True)
        blocked = free & (target < floor)
        ratio = torch.where(blocked, point / (point - target).clamp_min(1e-300), torch.inf)
        fraction = ratio.amin(1, keepdim=True).clamp(max=1)
        point = (point + fraction * (target - point)).clamp_min(0)
        stopped = blocked.any(1)
        leaving = blocked & (ratio <= fraction)
        # Rounding may stop a step at once at a variable that was just freed. It is then barred from being freed again
        # until a step makes progress, since this could repeat without end.
        barred = torch.where((fraction > 1e-12), leaving & (fraction <= 1e-12), barred | leaving)
        slope = torch.where(free | barred, torch.inf, _product(hessian, point) - linear)
        steepest, which = slope.min(1)
        entering = ~stopped & (steepest < -tolerance)
        if not bool((stopped | entering).any()):
            break
        free = free & ~leaving
        point = torch.where(leaving, 0, point)
        free[entering, which[entering]] = True
    return point


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.bmm(matrix, vector.unsqueeze(2)).squeeze(2)


def _solve_few(hessian: Tensor, linear: Tensor, free: Tensor) -> Tensor:
    """As `_solve_free`, from the rows and columns of the free variables alone if these are few."""
    count = int(free.sum(1).max())
    if FEW * count > free.shape[1]:
        return _solve_free(hessian, linear, free)
    which = free.to(torch.uint8).topk(count, dim=1).indices
    rows = hessian.gather(1, which.unsqueeze(2).expand(-1, -1, hessian.shape[2]))
    small = rows.gather(2, which.unsqueeze(1).expand(-1, count, -1))
    found = _solve_free(small, linear.gather(1, which), free.gather(1, which))
    return torch.zeros_like(linear).scatter_(1, which, found)


def _solve_free(hessian: Tensor, linear: Tensor, free: Tensor) -> Tensor:
    """H u = b in the free variables, 0 in the others, [R, K]."""
    weight = free.to(hessian.dtype)
    restricted = hessian * weight.unsqueeze(1) * weight.unsqueeze(2)
    restricted.diagonal(dim1=1, dim2=2).add_(1 - weight)
    factor = torch.linalg.cholesky_ex(restricted).L
    return torch.cholesky_solve((linear * weight).unsqueeze(2), factor).squeeze(2)
