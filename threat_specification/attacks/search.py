"""The loop of every evaluation under attack: each attack runs on the examples that the earlier ones left robust.

A set is a `Cell`: {threat <= threshold, ||delta||_inf <= radius} and the pixel box. An attack's own report of success
does not count: the model and the threat evaluate its points again. An adversarial point then counts in every cell that
contains it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

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

STANDING, WRONG_WITHOUT = 0, -1  # values of broken_by: correct after all attacks; misclassified without attack
SMALLEST = 1e-9  # smallest level: the gauge divides by levels, so 0 is not possible
WHOLE_CURVE = "minimal_gauge"  # this attack also finds the smallest set with an adversarial example for each example


@dataclass(frozen=True, order=True)
class Cell:
    """The set {threat <= threshold, ||delta||_inf <= radius}; a bound that is left out is infinite."""

    threshold: float
    radius: float

    def describe(self) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}

    def holds(self, threat: Tensor, length: Tensor) -> Tensor:
        """[B] bool: the points inside the cell, given their threats and l-inf norms [B]."""
        return at_most(threat, self.threshold) & at_most(length, self.radius)


def attack_set(bound: BoundThreat, cell: Cell) -> AttackSet:
    """A cell as a set that attacks can project onto; its boundary is at gauge 1 of the intersection."""
    x = bound.examples
    lower, upper = bound.bounds((-x).clamp_min(-cell.radius), (1 - x).clamp_max(cell.radius))
    members: list[tuple[BoundThreat, float]] = []
    if math.isfinite(cell.threshold):
        members.append((bound, max(cell.threshold, SMALLEST)))
    # Without any bound only the pixel box remains, which is a radius of 1.
    if math.isfinite(cell.radius) or not members:
        members.append((BoundLinf(x, bound.counted), min(max(cell.radius, SMALLEST), 1.0)))
    return AttackSet(BoundIntersection(x, members), 1.0, lower, upper)


class Space(Protocol):
    """The meaning of attacks' points: the sets of them, which know their images, and measures of their bounds."""

    def allowed(self, cell: Cell) -> AttackSet:
        """The points of a cell."""

    def change(self, point: Tensor) -> Tensor:
        """The perturbations of points, [B,C,H,W]."""

    def as_seen(self, point: Tensor, perturbed: Tensor) -> Tensor:
        """The points that stand for these images exactly, after pixels were kept in [0, 1]."""

    def measure(self, point: Tensor, perturbed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The threat, the length that the radius bounds, and whether all other bounds hold, [B] each."""


@dataclass(frozen=True)
class Pixels:
    """Points are perturbations."""

    bound: BoundThreat

    def allowed(self, cell: Cell) -> AttackSet:
        return attack_set(self.bound, cell)

    def change(self, point: Tensor) -> Tensor:
        return point

    def as_seen(self, point: Tensor, perturbed: Tensor) -> Tensor:
        return perturbed - self.bound.examples

    def measure(self, point: Tensor, perturbed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        delta, counted = perturbed - self.bound.examples, self.bound.counted
        flat = delta.flatten(1) if counted is None else delta.flatten(1) * counted
        lower, upper = self.bound.bounds(None, None)
        fixed = (lower == 0) & (upper == 0)  # the pixels of a frozen background
        return self.bound.evaluate(delta), flat.abs().amax(1), ~((delta != 0) & fixed).flatten(1).any(1)


class Search:
    """A record of all attacks on a batch of examples [B,C,H,W].

    right       [B] bool: the model predicts the label of the clean image
    broken_by   [B] number, from 1, of the first attack that succeeded in the headline cell; else STANDING or
                WRONG_WITHOUT
    worst       the point of that success, else the one of largest loss returned in the headline cell, [B,...]
    image       points -> their images, as attacks show them to the model
    loss        [B] margin at `worst`
    no_answer   [B] bool: the model returned NaN for the clean image or an attack's point, which counts as an error
    forwards, backwards  [B] passes of each example
    examples_in  for the cells in `kept`, the first adversarial image found there, else the clean one, [B,C,H,W]
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
        space: Space | None = None,
        kept: Sequence[Cell] = (),
    ) -> None:
        """Predict the clean images. `space`: what points stand for (default: perturbations)."""
        self.model, self.bound, self.labels, self.index = model, bound, labels, index
        self.headline, self.steps, self.seed = headline, steps, seed
        self.images, self.space = bound.examples, space or Pixels(bound)
        with torch.no_grad():
            self.clean_prediction = predicted(model(self.images))
        self.right = self.clean_prediction == labels
        self.no_answer = self.clean_prediction == NO_CLASS
        self.broken_by = torch.where(self.right, STANDING, WRONG_WITHOUT)
        points = self.space.allowed(headline)
        self.image, self.worst = points.image, points.origin
        self.loss = torch.full((len(labels),), -torch.inf, device=labels.device)
        self.forwards, self.backwards = (torch.zeros_like(labels) for _ in range(2))
        self.examples_in = dict.fromkeys(kept, self.images)
        self._found: list[tuple[Tensor, Tensor]] = []  # threat and l-inf norm of adversarial examples, else infinite

    def task(self, cell: Cell, robust: Tensor) -> Task:
        """The task to attack the `robust` examples in a cell."""
        allowed = self.space.allowed(cell)
        return Task(self.model, self.labels, allowed, robust, self.seed, self.index, self.steps)

    def attack(self, cell: Cell, attacks: Mapping[str, Attack]) -> None:
        """Run the attacks one after the other, each on the examples that are still robust in the cell.

        In the headline cell the attack WHOLE_CURVE runs on all examples that are right without attack.
        """
        for number, (name, attack) in enumerate(attacks.items(), start=1):
            robust = self.robust(cell)
            if name == WHOLE_CURVE and cell == self.headline:
                robust = self.right
            if not bool(robust.any()):
                continue
            self.record(attack(self.task(cell, robust)), number)

    def record(self, result: AttackResult, number: int) -> None:
        """Evaluate an attack's points again and record them."""
        self.forwards += result.forwards
        self.backwards += result.backwards
        perturbed = self.image(result.delta)
        point = self.space.as_seen(result.delta, perturbed)
        with torch.no_grad():
            answers = predicted(self.model(perturbed))
        wrong = self.right & (answers != self.labels)
        self.no_answer |= answers == NO_CLASS
        threat, length, lawful = self.space.measure(point, perturbed)
        wrong &= lawful
        before, before_in = self.robust(self.headline), [self.robust(cell) for cell in self.examples_in]
        self._found.append((_where_else_infinite(wrong, threat), _where_else_infinite(wrong, length)))
        for cell, held in zip(self.examples_in, before_in, strict=True):
            first = per_image(held & ~self.robust(cell))
            self.examples_in[cell] = torch.where(first, perturbed, self.examples_in[cell])
        new = before & ~self.robust(self.headline)
        tried = (self.broken_by == STANDING) & ~wrong & lawful & self.headline.holds(threat, length)
        replaced = new | (tried & (result.loss > self.loss))
        self.worst = torch.where(per_image(replaced), point, self.worst)
        self.loss = torch.where(replaced, result.loss, self.loss)
        self.broken_by = torch.where(new, number, self.broken_by)

    def robust(self, cell: Cell) -> Tensor:
        """[B] bool: examples that are right without attack and have no adversarial example in the cell so far."""
        robust = self.right
        for threat, length in self._found:
            robust = robust & ~(cell.holds(threat, length) & threat.isfinite())
        return robust

    def gauge(self) -> Tensor:
        """[B] smallest t such that the headline cell, with both bounds times t, contains an adversarial example.

        It is at most 1 exactly for examples that are not robust in the headline cell; 0 for those that are wrong
        without attack; inf if no adversarial example was found.
        """
        smallest = torch.where(self.right, torch.inf, 0.0)
        for threat, length in self._found:
            levels = threat / max(self.headline.threshold, SMALLEST), length / max(self.headline.radius, SMALLEST)
            gauge = torch.maximum(*levels)
            gauge = torch.where(self.headline.holds(threat, length), gauge.clamp_max(1), gauge)
            # inf / inf is NaN: nothing found, and a headline without one of its bounds.
            smallest = torch.minimum(smallest, torch.where(threat.isfinite(), gauge, torch.inf))
        return smallest


def _where_else_infinite(condition: Tensor, values: Tensor) -> Tensor:
    return torch.where(condition, values, torch.inf)
