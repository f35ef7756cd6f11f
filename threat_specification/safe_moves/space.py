"""Points (noise, weights) of mixtures of safe changes, for the loop of every evaluation under attack."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from threat_specification.attacks.base import AttackResult, AttackSet, Task, at_most
from threat_specification.attacks.search import Cell
from threat_specification.safe_moves.mixtures import BoundMixtures, MixtureSet, SafeMoves


@dataclass(frozen=True)
class Mixtures:
    """Points are (noise, weights), as `BoundMixtures` defines them; the radius of a cell is that of the noise.

    radius   that of the noise for which steps have the right length; with one unit of the weights, a point means the
             same in all cells
    """

    moves: SafeMoves
    radius: float

    @cached_property
    def unit(self) -> Tensor:
        """Unit of the weights' coordinates, [B]."""
        return self.moves.unit(self.radius)

    def _bound(self, cell: Cell) -> BoundMixtures:
        return BoundMixtures(self.moves, cell.threshold, cell.radius, self.unit)

    @property
    def _any(self) -> BoundMixtures:
        return self._bound(Cell(torch.inf, 1.0))

    def allowed(self, cell: Cell) -> AttackSet:
        return MixtureSet.around(self._bound(cell))

    def change(self, point: Tensor) -> Tensor:
        return self._any.change(point)

    def weights(self, point: Tensor) -> Tensor:
        """The weights of the safe changes, [B,K]."""
        return self._any.parts(point)[1]

    def as_seen(self, point: Tensor, perturbed: Tensor) -> Tensor:
        return point

    def measure(self, point: Tensor, perturbed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = self.weights(point)
        lawful = at_most(-weights, 0.0).all(1) & at_most(weights.sum(1), 1.0)
        # A mixture of images has its pixels in [0, 1]; what rounding adds is no noise.
        noise = perturbed - (self.moves.examples + self.moves.mixture(weights)).clamp(0, 1)
        change = perturbed - self.moves.examples
        return self.moves.threat.evaluate(change), noise.flatten(1).abs().amax(1), lawful


def single_moves(task: Task) -> AttackResult:
    """Try each safe change alone, as far as the set allows; points of other sets have none."""
    allowed, memory = task.allowed, task.best_so_far()
    if isinstance(allowed, MixtureSet):
        noise = torch.zeros_like(task.examples)
        for number in range(allowed.bound.moves.count):
            weights = noise.new_zeros(len(noise), allowed.bound.moves.count)
            weights[:, number] = 1
            memory.ask(allowed.project(allowed.bound.join(noise, weights)))
    return memory.result
