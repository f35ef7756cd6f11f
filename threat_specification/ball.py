"""The nearest point of a Euclidean ball and another convex set, found by projections onto the latter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SHORT, SHORTEST = 1e-6, 1e-5  # relative: how far inside the ball a point may end; less is lost in float32's rounding
MOST_STEPS = 40  # of the search for the factor; 3 to 8 are usual


def nearest_in_ball(
    project: Callable[[Tensor], Tensor], delta: Tensor, radius: float, origin: Tensor | None = None
) -> Tensor:
    """The nearest point to delta [B,C,H,W] with ||point||_2 <= radius in a convex set.

    project   the nearest point of that set, for a batch
    origin    project(0), where the set need not contain 0. Rows in which it lies outside the ball, so that there is no
              point in both, are returned as project(delta)

    A multiplier m of the ball turns |d - delta|^2 into (1 + m) |d - delta / (1 + m)|^2 but for a constant, so that the
    point is project(s delta) with the largest s <= 1 that lies in the ball: its norm grows with s. In a polytope it
    moves along straight lines, so that each next s is where the line through the last two points leaves the ball.
    """
    widest = last = project(delta)
    limit, aim, enough = (radius * (1 - share) for share in (SHORT, (SHORT + SHORTEST) / 2, SHORTEST))
    nearest = before = torch.zeros_like(delta) if origin is None else origin
    solvable = (_norm(last) > limit) & (_norm(nearest) <= limit)
    at_last = high = torch.ones_like(solvable, dtype=torch.float64)
    at_before = low = torch.zeros_like(high)
    for _ in range(MOST_STEPS):
        active = solvable & (_norm(nearest) < enough) & (high - low > SHORT * high)
        if not bool(active.any()):
            break
        guess = _on_line(before, last, at_before, at_last, aim)
        factor = torch.where((guess > low) & (guess < high), guess, (low + high) / 2)
        before, at_before, at_last = last, at_last, torch.where(active, factor, at_last)
        last = project(_each(at_last.to(delta.dtype)) * delta)
        inside = active & (_norm(last) <= limit)
        nearest, low = torch.where(_each(inside), last, nearest), torch.where(inside, at_last, low)
        high = torch.where(active & ~inside, at_last, high)
    return torch.where(_each(solvable), nearest, widest)


def _on_line(before: Tensor, last: Tensor, at_before: Tensor, at_last: Tensor, norm: float) -> Tensor:
    """The factor, [B] float64, at which the line through two points has this norm, on the side where norms grow."""
    start, way = before.flatten(1).double(), (last - before).flatten(1).double()
    a, b, c = way.square().sum(1), (start * way).sum(1), start.square().sum(1) - norm**2
    root = (b.square() - a * c).clamp_min(0).sqrt() * (at_last - at_before).sign()
    return at_before + (root - b) / a.clamp_min(1e-30) * (at_last - at_before)


def _each(rows: Tensor) -> Tensor:
    """[B] as [B,1,1,1], to go with images."""
    return rows.view(-1, 1, 1, 1)


def _norm(delta: Tensor) -> Tensor:
    """Euclidean norms, [B] float64."""
    return torch.linalg.vector_norm(delta.flatten(1), 2, dim=1, dtype=torch.float64)
