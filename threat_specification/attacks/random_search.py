"""Random search inside a set, without gradients, similar to Square Attack (Andriushchenko et al. 2020).

It is meant for models with gradient masking. A window of the image is set to its bounds, and the result is projected
onto the set; it is kept if the margin rises.
"""

from __future__ import annotations

import torch
from torch import Tensor

from threat_specification.attacks.base import AttackResult, Task, per_image
from threat_specification.attacks.random_numbers import uniform

LARGEST_WINDOW = 0.8  # first window's share of the image area
HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of all queries at which the area is halved
QUERIES_PER_STEP = 5  # forward passes in place of one step of an attack with gradients


def window_side(query: int, queries: int, height: int, width: int) -> int:
    """Side of the window at a query, at least 1 pixel."""
    area = LARGEST_WINDOW * height * width * 0.5 ** sum(query >= share * queries for share in HALVINGS)
    return max(1, min(round(area**0.5), height, width))


def random_search(task: Task, draw: int) -> AttackResult:
    """Run the search with QUERIES_PER_STEP forward passes per step: one for vertical stripes, then one per window.

    draw   number of the stripes' random field; the windows use the numbers after it
    """
    allowed, examples, queries = task.allowed, task.examples, QUERIES_PER_STEP * task.steps
    _, channels, height, width = examples.shape
    memory = task.best_so_far()
    stripes = uniform(task.seed, task.index, draw, (channels, 1, width)).expand_as(examples)
    share = allowed.from_pixels(stripes, lambda count: uniform(task.seed, task.index, draw, (count,)))
    best = allowed.project(allowed.corner(share))
    margin = memory.ask(best)
    for query in range(1, queries):
        active = memory.active
        if not bool(active.any()):
            break
        side = window_side(query, queries, height, width)
        draws = uniform(task.seed, task.index, draw + query, (3 + channels,))
        inside = _window(draws[:, 0], height, side, 2) & _window(draws[:, 1], width, side, 3) & per_image(active)
        up = (draws[:, 2 : 2 + channels] >= 0.5).view(-1, channels, 1, 1)
        trial = allowed.project(allowed.with_window(best, inside, up, draws[:, -1]))
        value = memory.ask(trial)
        better = active & (value > margin)
        best, margin = torch.where(per_image(better), trial, best), torch.where(better, value, margin)
    return memory.result


def _window(draw: Tensor, length: int, side: int, dimension: int) -> Tensor:
    """[B,1,length,1] or [B,1,1,length] bool: an interval of `side` pixels at a random position."""
    first = (draw * (length - side + 1)).long().view(-1, 1)
    places = torch.arange(length, device=draw.device).view(1, -1)
    inside = (places >= first) & (places < first + side)
    return inside.unsqueeze(1).unsqueeze(3 if dimension == 2 else 2)
