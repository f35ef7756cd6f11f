"""Smallest set of a given shape that contains an adversarial example: a whole robustness curve in one run.

The sets are {threat <= t * threshold}, for a threat that includes its bounds (an `Intersection` with a norm); t is the
gauge. Like FMN (Pintor et al. 2021, arXiv 2102.12827), the method alternates between a step that raises the margin and
a change of the set: it shrinks if the model is wrong, and grows if the model is right. Both get smaller over time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threat_specification.attacks.base import (
    AttackResult,
    BestSoFar,
    Classifier,
    Task,
    input_gradient,
    per_image,
)
from threat_specification.attacks.losses import LOSSES

LARGEST = 4.0  # first and largest gauge: so large that attacks on most examples succeed at once
SHRINK = (0.3, 0.002)  # relative change of the set, at the first and the last step
STEP = (4.0, 0.1)  # step size per pixel, at the first and the last step, in units of the set's current size
BISECTIONS = 6  # bisections along the ray to the adversarial example, at the end
CLOSE = 0.9  # lower end of the bisection, as a fraction of that ray
SMALLEST = 1e-6  # smallest gauge
MOST = 9  # other classes that `nearest_class` compares


def minimal_gauge(task: Task) -> AttackResult:
    """Find each example's adversarial example of smallest gauge; it may lie outside `allowed`, whose gauge is 1.

    There are two runs, each with all steps: one towards the other class with the largest logit at each step, and one
    towards the class that seems nearest at the clean image. The first may end at a decision boundary that is not the
    nearest.
    """
    allowed, robust = task.allowed, task.robust
    nearest, looked_at = nearest_class(task.model, task.labels, task.examples)
    attempts = [_alternate(task, loss, nearest) for loss in ("margin", "margin_targeted")]
    gauges = [allowed.bound.evaluate(found.delta).masked_fill(~found.success, torch.inf) for found in attempts]
    first, second = attempts
    better = (gauges[1] < gauges[0]) | (~first.success & ~second.success & (second.loss > first.loss))
    return AttackResult(
        first.success | second.success,
        torch.where(per_image(better), second.delta, first.delta),
        torch.where(better, second.loss, first.loss),
        first.forwards + second.forwards + robust,
        first.backwards + second.backwards + looked_at * robust,
    )


def searched_gauges(steps: int) -> tuple[float, float]:
    """The gauges between which `minimal_gauge` looks for adversarial examples, which lie on the border of its set.

    The set shrinks from the largest at every step but the first, at the image itself, where the model is right.
    """
    shrunk = math.prod(1 - _annealed(SHRINK, k, steps) for k in range(1, steps))
    return max(SMALLEST, LARGEST * shrunk * CLOSE), LARGEST


def nearest_class(model: Classifier, labels: Tensor, examples: Tensor) -> tuple[Tensor, int]:
    """The class of the nearest decision boundary if logits are linearised at the image, [B].

    This is DeepFool's estimate (arXiv 1511.04599, eq. 8), over at most the MOST most likely other classes. Also returns
    the number of these classes.
    """
    inputs = examples.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = model(inputs)
        others = logits.detach().scatter(1, labels.view(-1, 1), -torch.inf)
        candidates = others.topk(min(MOST, logits.shape[1] - 1), dim=1).indices
        distances = []
        for rank in range(candidates.shape[1]):
            gap = LOSSES["margin_targeted"](logits, labels, candidates[:, rank])
            slope = input_gradient(gap.sum(), inputs, keep=True)
            distances.append(-gap.detach() / slope.flatten(1).norm(dim=1).clamp_min(1e-12))
    return candidates.gather(1, torch.stack(distances, 1).argmin(1, keepdim=True)).squeeze(1), candidates.shape[1]


def _alternate(task: Task, loss: str, targets: Tensor) -> AttackResult:
    """Make one run: alternate steps and changes of the set, then shorten the result."""
    allowed, robust, steps, memory = task.allowed, task.robust, task.steps, task.best_so_far()
    size = allowed.reach
    level = torch.full(robust.shape, LARGEST, dtype=size.dtype, device=size.device)
    smallest, found = torch.full_like(level, torch.inf), allowed.origin
    margin_found = torch.zeros_like(level)
    delta = found
    for k in range(steps):
        margin, gradient = memory.ask_gradient(delta, LOSSES[loss], targets)
        smallest, found, margin_found = _keep(allowed, delta, margin, robust, smallest, found, margin_found)
        rate, stride = _annealed(SHRINK, k, steps), _annealed(STEP, k, steps)
        shrunk = torch.minimum(level, smallest) * (1 - rate)
        grown = torch.minimum(level * (1 + rate), torch.minimum(smallest * (1 - SHRINK[1]), level.new_tensor(LARGEST)))
        level = torch.where(margin > 0, shrunk, grown).clamp_min(SMALLEST)
        moved = delta + stride * size * per_image(level.clamp(max=1)) * allowed.ascend(gradient)
        delta = allowed.project_to_level(torch.where(per_image(robust), moved, delta), level)
    margin = memory.ask(delta)
    smallest, found, margin_found = _keep(allowed, delta, margin, robust, smallest, found, margin_found)
    found, margin_found = _shorten(memory, found, margin_found, smallest.isfinite())
    broken = smallest.isfinite()
    counts = memory.result
    return AttackResult(
        broken,
        torch.where(per_image(broken), found, counts.delta),
        torch.where(broken, margin_found, counts.loss),
        torch.where(robust, steps + 1 + BISECTIONS, 0),
        torch.where(robust, steps, 0),
    )


def _keep(allowed, delta, margin, robust, smallest, found, margin_found) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the adversarial point of smaller gauge: the one found before or `delta`."""
    gauge = (allowed.bound.evaluate(delta) / allowed.threshold).clamp_min(0)
    better = robust & (margin > 0) & (gauge < smallest)
    return (
        torch.where(better, gauge, smallest),
        torch.where(per_image(better), delta, found),
        torch.where(better, margin, margin_found),
    )


def _shorten(memory: BestSoFar, found: Tensor, margin: Tensor, broken: Tensor) -> tuple[Tensor, Tensor]:
    """Shorten the found perturbation by bisection along its ray; a shorter one has a smaller threat."""
    low, high = torch.full_like(margin, CLOSE), torch.ones_like(margin)
    best, best_margin = found, margin
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        shorter = found * per_image(middle)
        value = memory.ask(shorter)
        fails = broken & (value > 0)
        best = torch.where(per_image(fails), shorter, best)
        best_margin = torch.where(fails, value, best_margin)
        low, high = torch.where(fails, low, middle), torch.where(fails, middle, high)
    return best, best_margin


def _annealed(ends: tuple[float, float], k: int, steps: int) -> float:
    """Value at step k of a path from the first to the second of two numbers, along half a cosine."""
    first, last = ends
    return last + (first - last) * (1 + math.cos(math.pi * k / max(1, steps - 1))) / 2
