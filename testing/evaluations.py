"""Evaluations of every example for `test`: clean predictions, and attacks in l_p balls and nonisotropic sets.

Values of the broken_by columns: -1 misclassified without any attack; 0 robust to all attacks; i > 0 attack number i
was the first to succeed. no_answer: the model returned NaN or infinity for a perturbed image. scaled: how many points
the exact projection could not solve, so that they were scaled into the set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from foundations.errors import RunError
from foundations.pixels import as_floats
from testing.shards import Shard, count_correct
from threat_specification.attacks.base import Attack, predicted
from threat_specification.attacks.search import Cell, Pixels, Search, Space
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
    "scaled": "int64",
    "forwards": "int64",
    "backwards": "int64",
}
CELLS = "cells"  # for each cell, True if the example is robust in it
# Columns for the attacks of a library, which report neither loss nor passes, and support only a single ball.
BALL_COLUMNS = ("correct", "broken_by", "Linf", "L2", "rounded", "no_answer")


def refuse_no_answers(lost: Tensor, index: Tensor) -> None:
    """Raise RunError if the model has no answer for images that nobody changed: no accuracy would mean anything.

    lost, index   [n] of all examples: whether there is no answer, and their rows in the data set
    """
    if bool(lost.any()):
        raise RunError(
            f"the model's answers are not finite (NaN or infinity) for {int(lost.sum())} of {len(lost)} images, the "
            f"first is number {int(index[lost][0])}; look at its weights and its normalisation"
        )


@dataclass
class CleanEvaluation:
    """An evaluation of the prediction without attack; -1 if the model gives no finite answer."""

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
    """An evaluation under attack: all attacks in order, in the headline cell first, then in each cell of the grid.

    attacks   name -> attack, in order
    measures  further threats of the perturbed images, one column each: name -> (shard, perturbed) -> [n]
    space     what the points of attacks stand for, given a shard and its bound threat (default: perturbations)
    prefix    prefix of the column names
    kept      names from COLUMNS, and CELLS, of the columns to write
    keep_all  also keep an adversarial image of each cell in `further_cells`, [n, cells, C, H, W]
    """

    model: nn.Module
    threat: Threat
    headline: Cell
    attacks: Mapping[str, Attack]
    steps: int
    seed: int
    grid: Sequence[Cell] = ()
    measures: dict[str, Callable[[Shard, Tensor], Tensor]] = field(default_factory=dict)
    space: Callable[[Shard, BoundThreat], Space] | None = None
    prefix: str = "N_adv"
    kept: Sequence[str] = (*COLUMNS, CELLS)
    keep_all: bool = False

    @property
    def pictures(self) -> tuple[str, ...]:
        more = (f"{self.prefix}_cells_image",) if self.further_cells else ()
        return (f"{self.prefix}_image", *more)

    @property
    def further_cells(self) -> list[Cell]:
        """With `keep_all`, the cells with both bounds, but for the headline."""
        bounded = [cell for cell in self.cells if math.isfinite(cell.threshold) and math.isfinite(cell.radius)]
        return [cell for cell in bounded if cell != self.headline] if self.keep_all else []

    @property
    def cells(self) -> list[Cell]:
        """All cells, small ones first: an example that is not robust there need not be attacked in larger cells."""
        return sorted({self.headline, *self.grid})

    @property
    def columns(self) -> dict[str, str | tuple[str, int]]:
        known = COLUMNS | {CELLS: ("bool", len(self.cells))}
        columns = {name: known[name] for name in self.kept} | dict.fromkeys(self.measures, "float32")
        return {f"{self.prefix}_{name}": kind for name, kind in columns.items()}

    def bind(self, shard: Shard) -> BoundThreat:
        """Bind the threat to the examples of a shard."""
        context = {"indices": shard.index} if self.threat.segmented else {}
        return self.threat.bind(shard.images, shard.labels, **context)

    def search(self, shard: Shard) -> Search:
        """A new search on a shard, without any attack so far."""
        bound = self.bind(shard)
        space = self.space(shard, bound) if self.space else Pixels(bound)
        of_all = (shard.labels, shard.index, self.headline, self.steps, self.seed, space, self.further_cells)
        return Search(self.model, bound, *of_all)

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        search = self.search(shard)
        # The headline cell first, so that broken_by gives the attack that succeeded when run in that cell, not one that
        # was run in another cell and whose adversarial example also lies in the headline cell.
        for cell in [self.headline, *(cell for cell in self.cells if cell != self.headline)]:
            search.attack(cell, self.attacks)
        return self._rows(search, shard)

    def _rows(self, search: Search, shard: Shard) -> dict[str, Tensor]:
        perturbed, change = search.image(search.worst), search.space.change(search.worst)
        robust = search.robust(self.headline)
        rounded = as_floats((perturbed * 255).round().byte())
        flat = change.flatten(1)
        values = {
            "clean_prediction": search.clean_prediction,
            "correct": robust,
            "broken_by": search.broken_by,
            "threat": search.bound.evaluate(change),
            "Linf": flat.abs().amax(1),
            "L2": flat.norm(dim=1),
            "loss": torch.where(search.right, search.loss, 0.0),
            "gauge": search.gauge(),
            "rounded": search.right & ~robust & ~count_correct(self.model, rounded, shard.labels),
            "no_answer": search.no_answer,
            "scaled": getattr(search.bound, "scaled", torch.zeros_like(search.forwards)),
            "forwards": search.forwards,
            "backwards": search.backwards,
            CELLS: torch.stack([search.robust(cell) for cell in self.cells], 1),
        }
        values = {name: values[name] for name in self.kept} | {"image": perturbed}
        if self.further_cells:
            values["cells_image"] = torch.stack([search.examples_in[cell] for cell in self.further_cells], 1)
        values |= {name: measure(shard, perturbed) for name, measure in self.measures.items()}
        return {f"{self.prefix}_{name}": value for name, value in values.items()}
