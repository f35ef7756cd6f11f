"""Evaluations, which measure every example for `test`: clean predictions, and what attacks find in l_p balls and
nonisotropic sets.

broken_by columns: -1 wrong without any attack, 0 still right after all of them, i > 0 broken by attack number i;
no_answer: the model gave NaN there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from testing.shards import Shard, count_correct
from threat_specification.attacks.base import Attack, predicted
from threat_specification.attacks.search import Cell, Search
from threat_specification.base import BoundThreat, Threat

COLUMNS: dict[str, str | tuple[str, int]] = {
    "clean_prediction": "int64",
    "correct": "bool",
    "broken_by": "int64",
    "threat": "float32",
    "Linf": "float32",
    "L2": "float32",
    "loss": "float32",
    "gauge": "float32",
    "rounded": "bool",
    "no_answer": "bool",
    "forwards": "int64",
    "backwards": "int64",
}
CELLS = "cells"  # whether an example stands, for each cell
# A library's attacks tell neither loss nor passes, and know one ball alone.
BALL_COLUMNS = ("correct", "broken_by", "Linf", "L2", "rounded", "no_answer")


@dataclass
class CleanEvaluation:
    """The prediction without attack; -1 where the model answers NaN."""

    model: nn.Module
    columns: ClassVar[dict[str, str | tuple[str, int]]] = {
        "standard_prediction": "int64",
        "standard_correct": "bool",
    }
    pictures = ()

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        with torch.no_grad():
            prediction = predicted(self.model(shard.images))
        return {"standard_prediction": prediction, "standard_correct": prediction == shard.labels}


@dataclass
class AttackEvaluation:
    """The headline cell, then the grid, each by all attacks in turn.

    attacks   name -> attack, in order
    measures  further threats to measure what was found by: name -> (shard, perturbed) -> [n]
    prefix    of the columns;  kept: names of COLUMNS, and CELLS, that are written
    """

    model: nn.Module
    threat: Threat
    headline: Cell
    attacks: Mapping[str, Attack]
    steps: int
    seed: int
    grid: Sequence[Cell] = ()
    measures: dict[str, Callable[[Shard, Tensor], Tensor]] = field(default_factory=dict)
    prefix: str = "N_adv"
    kept: Sequence[str] = (*COLUMNS, CELLS)

    @property
    def pictures(self) -> tuple[str, ...]:
        return (f"{self.prefix}_image",)

    @property
    def cells(self) -> list[Cell]:
        """All cells, small ones first: what breaks there need not be attacked again."""
        return sorted({self.headline, *self.grid})

    @property
    def columns(self) -> dict[str, str | tuple[str, int]]:
        known = COLUMNS | {CELLS: ("bool", len(self.cells))}
        columns = {name: known[name] for name in self.kept} | dict.fromkeys(self.measures, "float32")
        return {f"{self.prefix}_{name}": kind for name, kind in columns.items()}

    def bind(self, shard: Shard) -> BoundThreat:
        """The threat at the examples of a shard."""
        context = {"indices": shard.index} if self.threat.segmented else {}
        return self.threat.bind(shard.images, shard.labels, **context)

    def search(self, shard: Shard) -> Search:
        """A search on a shard that has found nothing yet."""
        bound = self.bind(shard)
        # Where the background may become anything, the radius bounds the object alone.
        free = getattr(self.threat, "background", "") == "free"
        counted = getattr(bound, "mask", None) if free else None
        return Search(self.model, bound, shard.labels, shard.index, self.headline, self.steps, self.seed, counted)

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        search = self.search(shard)
        # The headline first, so that broken_by says which attack broke it there, not which one came by from elsewhere.
        for cell in [self.headline, *(cell for cell in self.cells if cell != self.headline)]:
            search.attack(cell, self.attacks)
        return self._rows(search, shard)

    def _rows(self, search: Search, shard: Shard) -> dict[str, Tensor]:
        perturbed = (shard.images + search.worst).clamp(0, 1)
        robust = search.robust(self.headline)
        rounded = (perturbed * 255).round() / 255
        flat = search.worst.flatten(1)
        values = {
            "clean_prediction": search.clean_prediction,
            "correct": robust,
            "broken_by": search.broken_by,
            "threat": search.bound.evaluate(search.worst),
            "Linf": flat.abs().amax(1),
            "L2": flat.norm(dim=1),
            "loss": torch.where(search.right, search.loss, 0.0),
            "gauge": search.gauge(),
            "rounded": search.right & ~robust & ~count_correct(self.model, rounded, shard.labels),
            "no_answer": search.no_answer,
            "forwards": search.forwards,
            "backwards": search.backwards,
            CELLS: torch.stack([search.robust(cell) for cell in self.cells], 1),
        }
        values = {name: values[name] for name in self.kept} | {"image": perturbed}
        values |= {name: measure(shard, perturbed) for name, measure in self.measures.items()}
        return {f"{self.prefix}_{name}": value for name, value in values.items()}
