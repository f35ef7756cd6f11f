"""Accuracy inside nonisotropic sets {PD <= threshold, ||delta||_inf <= radius}, by an ensemble of attacks.

A set is a `Cell`. The one that was asked for is the headline; others form a grid around it, and serve as references.
An adversarial found anywhere counts in every cell that it lies in. Everything found is measured again by the threat
itself before it counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from testing.evaluations import INSIDE, STANDING, WRONG_WITHOUT
from testing.shards import Shard, count_correct
from threat_specification.attacks.base import AttackSet, Attempt
from threat_specification.attacks.ensemble import MEMBERS
from threat_specification.base import BoundThreat, Threat
from threat_specification.intersection import BoundIntersection
from threat_specification.norms import BoundLinf

SMALLEST = 1e-9  # a level of 0 leaves a gauge no unit
WHOLE_CURVE = "minimal_gauge"  # the member that finds the smallest set each example breaks in, not only whether


@dataclass(frozen=True, order=True)
class Cell:
    """{threat <= threshold, ||delta||_inf <= radius}; infinity where a bound is left out."""

    threshold: float
    radius: float

    def describe(self) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}


@dataclass
class NonisotropicEvaluation:
    """The headline cell, then the grid.

    members   names of attacks, in order
    measures  further threats to measure what was found by: name -> (examples, labels, perturbed, index) -> [n]
    """

    model: nn.Module
    threat: Threat
    headline: Cell
    grid: Sequence[Cell]
    members: Sequence[str]
    steps: int
    seed: int
    measures: dict[str, Callable[[Shard, Tensor], Tensor]] = field(default_factory=dict)
    prefix: str = "N_adv"  # of the columns

    @property
    def pictures(self) -> tuple[str, ...]:
        return (f"{self.prefix}_image",)

    @property
    def cells(self) -> list[Cell]:
        """All cells, small ones first: what breaks there need not be attacked again."""
        return sorted({self.headline, *self.grid})

    @property
    def columns(self) -> dict[str, str | tuple[str, int]]:
        floats = ("threat", "Linf", "L2", "loss", "gauge", *self.measures)
        columns: dict[str, str | tuple[str, int]] = {
            "clean_prediction": "int64",
            "correct": "bool",
            "broken_by": "int64",
        }
        columns |= dict.fromkeys(floats, "float32")
        columns |= {"rounded": "bool", "forwards": "int64", "backwards": "int64", "cells": ("bool", len(self.cells))}
        return {f"{self.prefix}_{name}": kind for name, kind in columns.items()}

    def bind(self, shard: Shard) -> BoundThreat:
        """The threat at the examples of a shard."""
        context = {"indices": shard.index} if self.threat.segmented else {}
        return self.threat.bind(shard.images, shard.labels, **context)

    def allowed(self, shard: Shard, cell: Cell) -> AttackSet:
        """A cell at the examples of a shard."""
        return attack_set(self.bind(shard), cell)

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        search = _Search(self, shard)
        # The headline first, so that broken_by says which member broke it there, not which one came by from elsewhere.
        for cell in [self.headline, *(cell for cell in self.cells if cell != self.headline)]:
            search.attack(cell)
        return search.rows()


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


class _Search:
    """What is found for the examples of one shard."""

    def __init__(self, evaluation: NonisotropicEvaluation, shard: Shard) -> None:
        self.evaluation, self.shard = evaluation, shard
        self.bound = evaluation.bind(shard)
        with torch.no_grad():
            self.clean_prediction = evaluation.model(shard.images).argmax(1)
        self.right = self.clean_prediction == shard.labels
        self.broken_by = torch.where(self.right, STANDING, WRONG_WITHOUT)
        self.worst = torch.zeros_like(shard.images)  # the point that broke the headline, else the last one tried
        self.loss = torch.full((len(shard.labels),), -torch.inf, device=shard.images.device)
        self.forwards, self.backwards = (torch.zeros_like(shard.labels) for _ in range(2))
        self.found: list[tuple[Tensor, Tensor]] = []  # threat and l-inf norm of what broke, infinite elsewhere

    def attack(self, cell: Cell) -> None:
        """All members, one after the other, on what is left standing in a cell."""
        for number, name in enumerate(self.evaluation.members, start=1):
            is_headline = cell == self.evaluation.headline
            standing = self.right & ~self.breaks_in(cell)
            targets = self.right if name == WHOLE_CURVE and is_headline else standing
            if not bool(targets.any()):
                continue
            allowed = attack_set(self.bound, cell)
            attempt: Attempt = MEMBERS[name](
                self.evaluation.model,
                self.shard.labels,
                allowed,
                self.evaluation.seed,
                self.shard.index,
                self.evaluation.steps,
                targets,
            )
            self.forwards += attempt.forwards
            self.backwards += attempt.backwards
            self.record(attempt, number, (allowed.lower == 0) & (allowed.upper == 0))

    def record(self, attempt: Attempt, number: int, fixed: Tensor) -> None:
        """Count what an attack found, after measuring it again.

        fixed   [n,C,H,W] pixels that may not move at all, as in a frozen background
        """
        perturbed = (self.shard.images + attempt.delta).clamp(0, 1)
        delta = perturbed - self.shard.images
        wrong = self.right & ~count_correct(self.evaluation.model, perturbed, self.shard.labels)
        wrong &= ~((delta.abs() > INSIDE) & fixed).flatten(1).any(1)
        threat, length = self.bound.evaluate(delta), self.length(delta)
        before = self.breaks_in(self.evaluation.headline)
        self.found.append((_where_else_infinite(wrong, threat), _where_else_infinite(wrong, length)))
        new = self.breaks_in(self.evaluation.headline) & ~before
        tried = (self.broken_by == STANDING) & ~wrong & self.inside(threat, length, self.evaluation.headline)
        replaced = (new | (tried & (attempt.loss > self.loss))).view(-1, 1, 1, 1)
        self.worst = torch.where(replaced, delta, self.worst)
        self.loss = torch.where(replaced.flatten(), attempt.loss, self.loss)
        self.broken_by = torch.where(new, number, self.broken_by)

    def length(self, delta: Tensor) -> Tensor:
        """l-inf norm, [n], of what the radius bounds: not of a background that may become anything."""
        mask = getattr(self.bound, "mask", None)
        if mask is not None and self.evaluation.threat.background == "free":  # type: ignore[attr-defined]
            delta = delta.flatten(1) * mask
        return delta.flatten(1).abs().amax(1)

    def inside(self, threat: Tensor, length: Tensor, cell: Cell) -> Tensor:
        """[n]: which points lie in a cell, as far as float32 can tell."""
        return (threat <= cell.threshold * (1 + INSIDE) + 1e-7) & (length <= cell.radius * (1 + INSIDE) + 1e-7)

    def breaks_in(self, cell: Cell) -> Tensor:
        """[n]: which examples are broken by something found so far in a cell."""
        broken = torch.zeros_like(self.right)
        for threat, length in self.found:
            broken |= self.inside(threat, length, cell) & threat.isfinite()
        return broken

    def rows(self) -> dict[str, Tensor]:
        """The columns of the evaluation."""
        perturbed = (self.shard.images + self.worst).clamp(0, 1)
        rounded = (perturbed * 255).round() / 255
        broken = self.breaks_in(self.evaluation.headline)
        measured = {name: measure(self.shard, perturbed) for name, measure in self.evaluation.measures.items()}
        values = {
            "clean_prediction": self.clean_prediction,
            "correct": self.right & ~broken,
            "broken_by": self.broken_by,
            "threat": self.bound.evaluate(self.worst),
            "Linf": self.worst.flatten(1).abs().amax(1),
            "L2": self.worst.flatten(1).norm(dim=1),
            "loss": torch.where(self.right, self.loss, 0.0),
            "gauge": self.gauge(),
            **measured,
            "rounded": broken & ~count_correct(self.evaluation.model, rounded, self.shard.labels),
            "forwards": self.forwards,
            "backwards": self.backwards,
            "cells": torch.stack([self.right & ~self.breaks_in(cell) for cell in self.evaluation.cells], 1),
            "image": perturbed,
        }
        return {f"{self.evaluation.prefix}_{name}": value for name, value in values.items()}

    def gauge(self) -> Tensor:
        """Smallest t for which the headline cell, t times as large in both bounds, holds an adversarial; else inf."""
        headline = self.evaluation.headline
        smallest = torch.where(self.right, torch.inf, 0.0)
        for threat, length in self.found:
            levels = threat / max(headline.threshold, SMALLEST), length / max(headline.radius, SMALLEST)
            smallest = torch.minimum(smallest, torch.maximum(*levels))
        return smallest


def _where_else_infinite(condition: Tensor, values: Tensor) -> Tensor:
    return torch.where(condition, values, torch.inf)
