"""An audit of attacks: what each one finds alone, with how many passes, beside the best that is known.

Every attack runs alone on all images that are right without attack, in each cell of a curve. Attacks stop on an image
when they succeed, and neither the batch nor earlier attacks change what they do. So the results tell for any order of
any of them, without another run, what an ensemble finds and what it costs.

Shapes: n images, A attacks, C cells of the curve. A pass is a forward or a backward pass of one image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from testing.evaluations import AttackEvaluation
from testing.shards import Shard
from threat_specification.attacks.base import Attack
from threat_specification.attacks.search import Cell

PASSES, BROKEN, RIGHT = "audit_passes", "audit_broken", "audit_right"
BUDGET = 10  # passes for each step of an attack, at which curves are compared

Arrays = Mapping[str, numpy.ndarray]


@dataclass
class AuditEvaluation:
    """Each attack alone, in the cells of a curve: those with the headline's radius, small thresholds first.

    attacked   its model, threat, cells, steps and seed
    attacks    name -> attack
    """

    attacked: AttackEvaluation
    attacks: Mapping[str, Attack]
    pictures: Sequence[str] = ()

    @property
    def cells(self) -> list[Cell]:
        """The cells of the curve; the headline is one of them."""
        radius = self.attacked.headline.radius
        return [cell for cell in self.attacked.cells if cell.radius == radius and math.isfinite(cell.threshold)]

    @property
    def columns(self) -> dict[str, str | tuple[str, int]]:
        length = len(self.attacks) * len(self.cells)
        return {RIGHT: "bool", PASSES: ("int64", length), BROKEN: ("bool", length)}

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        alone = [self._alone(attack, shard) for attack in self.attacks.values()]
        passes, broken = (torch.cat([found[part] for found in alone], 1) for part in range(2))
        return {RIGHT: self.attacked.search(shard).right, PASSES: passes, BROKEN: broken}

    def _alone(self, attack: Attack, shard: Shard) -> tuple[Tensor, Tensor]:
        """Passes and successes [n, C] of one attack, each cell by itself."""
        passes, broken = [], []
        for cell in self.cells:
            search = self.attacked.search(shard)
            if bool(search.right.any()):
                search.record(attack(search.task(cell, search.right)), 1)
            passes.append(search.forwards + search.backwards)
            broken.append(search.right & ~search.robust(cell))
        return torch.stack(passes, 1), torch.stack(broken, 1)


@dataclass(frozen=True)
class Audit:
    """The results of an audit.

    names    of the attacks
    right    [n] bool: right without attack
    passes   [n, A, C] passes of each attack alone: until it succeeded, else all
    broken   [n, A, C] bool: it succeeded
    headline number of the headline's cell
    """

    names: Sequence[str]
    right: numpy.ndarray
    passes: numpy.ndarray
    broken: numpy.ndarray
    headline: int = 0

    @classmethod
    def of(cls, evaluation: AuditEvaluation, arrays: Arrays) -> Audit:
        """The results in the arrays of an evaluation."""
        names, cells = list(evaluation.attacks), evaluation.cells
        passes, broken = (arrays[name].reshape(-1, len(names), len(cells)) for name in (PASSES, BROKEN))
        return cls(names, arrays[RIGHT], passes, broken, cells.index(evaluation.attacked.headline))

    def accuracy(self, name: str, budget: float = math.inf) -> numpy.ndarray:
        """Accuracy [C] that one attack leaves with at most this many passes for each image."""
        number = self.names.index(name)
        found = self.broken[:, number] & (self.passes[:, number] <= budget)
        return (self.right[:, None] & ~found).mean(0)

    def optimality(self, budget: float) -> dict[str, float]:
        """The share of what is lost below clean accuracy, summed over the cells, that each attack finds; 1 at best.

        At equal passes; what is lost in a cell is what the best attack there finds (as in AttackBench, arXiv
        2404.19460, with cells in place of norms: where thresholds are evenly spaced, the sum is the area over a curve).
        NaN if nothing was found.
        """
        clean = self.right.mean()
        gained = {name: (clean - self.accuracy(name, budget)) for name in self.names}
        best = numpy.max(list(gained.values()), 0).sum()
        return {name: float(found.sum() / best) if best else math.nan for name, found in gained.items()}

    def only(self, name: str, among: Sequence[str]) -> int:
        """The number of images that one attack alone breaks among some, in the headline cell."""
        others = [self.names.index(other) for other in among if other != name]
        broken = self.broken[:, :, self.headline]
        return int((broken[:, self.names.index(name)] & ~broken[:, others].any(1)).sum())

    def in_turn(self, names: Sequence[str]) -> list[tuple[float, float]]:
        """(accuracy left, passes for an image) after each attack of an ensemble in this order, in the headline cell."""
        left, passes, rows = self.right.copy(), 0.0, []
        for name in names:
            number = self.names.index(name)
            passes += float(self.passes[left, number, self.headline].sum())
            left &= ~self.broken[:, number, self.headline]
            rows.append((float(left.mean()), passes / max(1, len(left))))
        return rows

    def by_gain(self, names: Sequence[str]) -> list[str]:
        """Attacks in order: each time the one that breaks most of what is left for its passes, while one breaks any."""
        left, order, rest = self.right.copy(), list[str](), list(names)
        while rest:
            gains = {}
            for name in rest:
                number = self.names.index(name)
                spent = self.passes[left, number, self.headline].sum()
                gains[name] = float(self.broken[left, number, self.headline].sum() / max(1, spent))
            best = max(rest, key=gains.__getitem__)
            if not gains[best]:
                break
            order.append(best)
            rest.remove(best)
            left &= ~self.broken[:, self.names.index(best), self.headline]
        return order
