"""The loop of every evaluation under attack: attacks in turn, each on what the earlier ones left robust.

A set is a `Cell`, {threat <= threshold, ||delta||_inf <= radius} and the pixel box. What an attack says does not count:
each of its points is measured again, by the model and by the threat itself, and breaks the example in every cell that
it lies in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from threat_specification.attacks.base import (
    NO_CLASS,
    Attack,
    AttackResult,
    AttackSet,
    Classifier,
    Task,
    at_most,
    per_image,
    predicted,
)
from threat_specification.base import BoundThreat
from threat_specification.intersection import BoundIntersection
from threat_specification.norms import BoundLinf

STANDING, WRONG_WITHOUT = 0, -1  # broken_by: still right after all attacks, wrong without any
SMALLEST = 1e-9  # a level of 0 leaves a gauge no unit
WHOLE_CURVE = "minimal_gauge"  # the attack that finds the smallest set each example breaks in, not only whether


@dataclass(frozen=True, order=True)
class Cell:
    """{threat <= threshold, ||delta||_inf <= radius}; infinity where a bound is left out."""

    threshold: float
    radius: float

    def describe(self) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}

    def holds(self, threat: Tensor, length: Tensor) -> Tensor:
        """[B]: which points lie in it, by their threats and l-inf norms [B]."""
        return at_most(threat, self.threshold) & at_most(length, self.radius)


def attack_set(bound: BoundThreat, cell: Cell) -> AttackSet:
    """A cell as a set that attacks can project onto: value 1 of the intersection's gauge is its border."""
    x = bound.examples
    lower, upper = bound.bounds((-x).clamp_min(-cell.radius), (1 - x).clamp_max(cell.radius))
    members: list[tuple[BoundThreat, float]] = []
    if math.isfinite(cell.threshold):
        members.append((bound, max(cell.threshold, SMALLEST)))
    # Without any bound the pixel box is left, a radius of 1.
    if math.isfinite(cell.radius) or not members:
        members.append((BoundLinf(x), min(max(cell.radius, SMALLEST), 1.0)))
    return AttackSet(BoundIntersection(x, members), 1.0, lower, upper)


class Search:
    """A record of all that is found for a batch of examples [B,C,H,W].

    right       [B] the model sees the label without any attack
    broken_by   [B] number of the attack, from 1 on, that broke the example in the headline cell; else STANDING or
                WRONG_WITHOUT
    worst       [B,C,H,W] the perturbation that did, else the one of largest loss that was tried in that cell
    loss        [B] the margin there
    no_answer   [B] the model answered NaN, to the image or to what an attack found: wrong, whatever the label
    forwards, backwards  [B] passes spent on each example
    """

    def __init__(
        self,
        model: Classifier,
        bound: BoundThreat,
        labels: Tensor,
        index: Tensor,
        headline: Cell,
        steps: int,
        seed: int,
        counted: Tensor | None = None,
    ) -> None:
        """counted: [B, D] 0/1, the pixels whose change the radius bounds (default: all)."""
        self.model, self.bound, self.labels, self.index = model, bound, labels, index
        self.headline, self.steps, self.seed, self.counted = headline, steps, seed, counted
        self.images = bound.examples
        with torch.no_grad():
            self.clean_prediction = predicted(model(self.images))
        self.right = self.clean_prediction == labels
        self.no_answer = self.clean_prediction == NO_CLASS
        self.broken_by = torch.where(self.right, STANDING, WRONG_WITHOUT)
        self.worst = torch.zeros_like(self.images)
        self.loss = torch.full((len(labels),), -torch.inf, device=labels.device)
        self.forwards, self.backwards = (torch.zeros_like(labels) for _ in range(2))
        self._found: list[tuple[Tensor, Tensor]] = []  # threat and l-inf norm of what broke, infinite elsewhere

    def task(self, cell: Cell, robust: Tensor) -> Task:
        """Attacking those examples in a cell."""
        allowed = attack_set(self.bound, cell)
        return Task(self.model, self.labels, allowed, robust, self.seed, self.index, self.steps)

    def attack(self, cell: Cell, attacks: Mapping[str, Attack]) -> None:
        """All attacks, one after the other, on what is left robust in a cell."""
        for number, (name, attack) in enumerate(attacks.items(), start=1):
            robust = self.robust(cell)
            if name == WHOLE_CURVE and cell == self.headline:
                robust = self.right
            if not bool(robust.any()):
                continue
            task = self.task(cell, robust)
            self.record(attack(task), number, task.allowed.fixed)

    def record(self, result: AttackResult, number: int, fixed: Tensor) -> None:
        """Count what an attack found, after measuring it again; fixed: pixels that may not move (`AttackSet.fixed`)."""
        self.forwards += result.forwards
        self.backwards += result.backwards
        perturbed = (self.images + result.delta).clamp(0, 1)
        delta = perturbed - self.images
        with torch.no_grad():
            answers = predicted(self.model(perturbed))
        wrong = self.right & (answers != self.labels)
        self.no_answer |= answers == NO_CLASS
        wrong &= ~((delta != 0) & fixed).flatten(1).any(1)
        threat, length = self.bound.evaluate(delta), self.length(delta)
        before = self.robust(self.headline)
        self._found.append((_where_else_infinite(wrong, threat), _where_else_infinite(wrong, length)))
        new = before & ~self.robust(self.headline)
        tried = (self.broken_by == STANDING) & ~wrong & self.headline.holds(threat, length)
        replaced = new | (tried & (result.loss > self.loss))
        self.worst = torch.where(per_image(replaced), delta, self.worst)
        self.loss = torch.where(replaced, result.loss, self.loss)
        self.broken_by = torch.where(new, number, self.broken_by)

    def length(self, delta: Tensor) -> Tensor:
        """l-inf norm of what the radius bounds, [B]."""
        flat = delta.flatten(1) if self.counted is None else delta.flatten(1) * self.counted
        return flat.abs().amax(1)

    def robust(self, cell: Cell) -> Tensor:
        """[B]: which examples are right without attack, and not broken by anything found so far in a cell."""
        robust = self.right
        for threat, length in self._found:
            robust = robust & ~(cell.holds(threat, length) & threat.isfinite())
        return robust

    def gauge(self) -> Tensor:
        """[B] smallest t for which the headline cell, t times as large in both bounds, holds an adversarial; else inf.

        At most 1 exactly where the example is broken in the headline cell.
        """
        smallest = torch.where(self.right, torch.inf, 0.0)
        for threat, length in self._found:
            levels = threat / max(self.headline.threshold, SMALLEST), length / max(self.headline.radius, SMALLEST)
            gauge = torch.maximum(*levels)
            gauge = torch.where(self.headline.holds(threat, length), gauge.clamp_max(1), gauge)
            smallest = torch.minimum(smallest, gauge)
        return smallest


def _where_else_infinite(condition: Tensor, values: Tensor) -> Tensor:
    return torch.where(condition, values, torch.inf)
