"""Pictures of a finished evaluation: strip.png, the gallery of safe changes, and all perturbed images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import nn

from datasets.base import Examples
from datasets.info import DatasetInfo
from foundations.environment import Environment
from foundations.files import write_bytes
from foundations.modes import evaluation_mode
from foundations.run_directory import RunDirectory
from foundations.testing_hparams import TestingHparams
from runners.checks import names_in
from runners.plots import Column, amplified, write_strip
from runners.test import moves
from runners.test.summary import MOVES, OTHER_ANCHORS
from testing.shards import ShardStore
from threat_specification.attacks.base import NO_CLASS, predicted

STRIP_ROWS = 6
# Titles of the columns of strip.png, by evaluation under attack.
TITLES = {
    "adv": "isotropic\nattack",
    "N_adv": "nonisotropic\nattack",
    OTHER_ANCHORS: "anchors of\ntraining",
    MOVES: "safe changes\nand noise",
}


@dataclass(frozen=True)
class Pictures:
    """The pictures of the examples `index` of `images`, from what the shards in `store` kept."""

    directory: RunDirectory
    environment: Environment
    testing: TestingHparams
    info: DatasetInfo
    model: nn.Module
    images: Examples
    index: torch.Tensor
    store: ShardStore

    def write(self, evaluations: Sequence[str]) -> None:
        """Write strip.png: examples of the first shard, first those broken most often, then in the smallest sets.

        With --save_adversarials, also write all perturbed images.
        """
        first = {name: torch.from_numpy(rows) for name, rows in self.store.pictures(0).items()}
        attacked = [name for name in evaluations if f"{name}_image" in first]
        if not attacked:
            return
        clean = self.images.pixels(self.index[: len(first[f"{attacked[0]}_image"])])
        broken = torch.stack([(first[f"{name}_broken_by"] > 0).float() for name in attacked]).sum(0)
        order = -broken + first["N_adv_gauge"].clamp(max=1e6) * 1e-7 if "N_adv_gauge" in first else -broken
        rows = order.argsort(stable=True)[:STRIP_ROWS]
        columns = [Column("clean", clean[rows], self._predicted(clean[rows]))]
        for name in attacked:
            columns += self._attacked_columns(name, clean[rows], first[f"{name}_image"][rows])
        write_strip(self.directory / "strip.png", columns)
        if MOVES in attacked:
            moves.write_gallery(self.directory / "moves.png", clean, first, names_in(self.testing.safe_moves))
        if self.testing.save_adversarials:
            self._write_adversarials(attacked)

    def _attacked_columns(self, name: str, clean: torch.Tensor, perturbed: torch.Tensor) -> list[Column]:
        largest = (perturbed - clean).flatten(1).abs().amax(1)
        return [
            Column(TITLES[name], perturbed, self._predicted(perturbed)),
            Column("its change\n(amplified)", amplified(perturbed - clean), [f"l-inf {v:.3f}" for v in largest]),
        ]

    def _write_adversarials(self, attacked: list[str]) -> None:
        from safetensors.numpy import save

        shards = [self.store.pictures(n) for n in range(-(-len(self.index) // self.testing.shard_size))]
        # Beside those of the headline, those of the other cells of the grid.
        attacked = [*attacked, *(f"{name}_cells" for name in attacked if f"{name}_cells_image" in shards[0])]
        images = {name: numpy.concatenate([shard[f"{name}_image"] for shard in shards]) for name in attacked}
        write_bytes(self.directory / "adversarials.safetensors", save({"index": self.index.numpy(), **images}))

    def _predicted(self, images: torch.Tensor) -> list[str]:
        with torch.no_grad(), evaluation_mode(self.model):
            answers = predicted(self.model(images.to(self.environment.device)))
        titles = [self.info.title(int(label)) if label != NO_CLASS else "nothing: NaN" for label in answers]
        return [f"seen as {title}" for title in titles]
