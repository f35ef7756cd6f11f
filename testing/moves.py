"""The evaluation inside the set of mixtures of safe changes plus small noise; each safe change alone beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from testing.evaluations import CELLS, COLUMNS, AttackEvaluation
from testing.foreign import own
from testing.shards import Shard, count_correct
from threat_specification.attacks.registry import ATTACKS
from threat_specification.attacks.search import Cell, Search
from threat_specification.safe_moves.changes import changed, names
from threat_specification.safe_moves.mixtures import SafeMoves
from threat_specification.safe_moves.space import Mixtures

KEPT = tuple(name for name in (*COLUMNS, CELLS) if name != "gauge")


def with_moves(
    plain: AttackEvaluation, changes: Sequence[tuple[str, int]], grid: Sequence[Cell] = (), prefix: str = "N_adv"
) -> MovesEvaluation:
    """The same evaluation in the set of mixtures of safe changes; each change alone is tried first.

    The changes are made with the seed of the evaluation. `gauge` is not among the columns. Foreign attacks are left
    out: their points are perturbed images, not mixtures.
    """
    return MovesEvaluation(
        plain.model,
        plain.threat,
        plain.headline,
        {"single_moves": ATTACKS["single_moves"], **own(plain.attacks)},
        plain.steps,
        plain.seed,
        grid,
        plain.measures,
        prefix=prefix,
        kept=KEPT,
        changed=lambda shard: changed(shard.images, shard.index, plain.seed, changes),
        count=len(names(changes)),
    )


@dataclass
class MovesEvaluation(AttackEvaluation):
    """An evaluation under attack whose points are a mixture of safe changes and noise.

    Columns beside those of every attack: `single` [K], correct at each safe change alone; `weights` [K] and `noise`,
    the weights and the l-inf norm of the noise at the point found. The picture `mixture` is the image without noise.

    changed   shard -> [n,K,C,H,W] the changed images
    count     K
    """

    changed: Callable[[Shard], Tensor] = field(kw_only=True)
    count: int = field(kw_only=True)

    @property
    def columns(self) -> dict[str, str | tuple[str, int]]:
        more: dict[str, str | tuple[str, int]] = {
            f"{self.prefix}_single": ("bool", self.count),
            f"{self.prefix}_weights": ("float32", self.count),
            f"{self.prefix}_noise": "float32",
        }
        return super().columns | more

    @property
    def pictures(self) -> tuple[str, ...]:
        return (*super().pictures, f"{self.prefix}_mixture")

    def __post_init__(self) -> None:
        self.space = lambda shard, bound: Mixtures(SafeMoves(bound, self.changed(shard)), self.headline.radius)

    def _rows(self, search: Search, shard: Shard) -> dict[str, Tensor]:
        space = search.space
        assert isinstance(space, Mixtures)
        mixture = (shard.images + space.moves.mixture(space.weights(search.worst))).clamp(0, 1)
        perturbed = search.image(search.worst)
        single = [count_correct(self.model, images, shard.labels) for images in space.moves.single()]
        more = {
            "single": torch.stack(single, 1),
            "weights": space.weights(search.worst),
            "noise": (perturbed - mixture).flatten(1).abs().amax(1),
            "mixture": mixture,
        }
        return super()._rows(search, shard) | {f"{self.prefix}_{name}": value for name, value in more.items()}
