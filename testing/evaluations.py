"""What `test` measures of every example without a nonisotropic threat: clean predictions, and attacks in l_p balls.

broken_by columns: -1 wrong without any attack, 0 still right after all of them, i > 0 broken by attack number i.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from testing.autoattack import run_member
from testing.shards import Shard, count_correct
from threat_specification.attacks.base import AttackSet
from threat_specification.attacks.ensemble import MEMBERS
from threat_specification.norms import L2, Linf

STANDING, WRONG_WITHOUT = 0, -1
INSIDE = 1e-5  # relative: float32 can tell no better whether a point is in the set
PGD_STEPS = 40
ORDERS = {"Linf": math.inf, "L2": 2.0}

Attack = Callable[[Shard, Tensor], Tensor]  # (shard, standing [n] bool) -> perturbed images [n,C,H,W]


@dataclass
class CleanEvaluation:
    """The prediction without attack."""

    model: nn.Module
    columns: ClassVar[dict[str, str | tuple[str, int]]] = {
        "standard_prediction": "int64",
        "standard_correct": "bool",
    }
    pictures = ()

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        with torch.no_grad():
            prediction = self.model(shard.images).argmax(1)
        return {"standard_prediction": prediction, "standard_correct": prediction == shard.labels}


@dataclass
class BallEvaluation:
    """Attacks in an l_p ball, one after the other, each on what the earlier ones left standing.

    attacks   name -> attack; what they find outside ball or pixel box does not count
    """

    model: nn.Module
    norm: str
    power: float
    attacks: dict[str, Attack]

    pictures = ("adv_image",)

    @property
    def columns(self) -> dict[str, str | tuple[str, int]]:
        return {
            "adv_correct": "bool",
            "adv_broken_by": "int64",
            "adv_Linf": "float32",
            "adv_L2": "float32",
            "adv_rounded": "bool",
        }

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        standing = count_correct(self.model, shard.images, shard.labels)
        broken_by = torch.where(standing, STANDING, WRONG_WITHOUT)
        worst = shard.images.clone()
        for number, attack in enumerate(self.attacks.values(), start=1):
            if not bool(standing.any()):
                break
            perturbed = attack(shard, standing)
            fails = ~count_correct(self.model, perturbed, shard.labels) & standing & self._inside(shard, perturbed)
            worst = torch.where(fails.view(-1, 1, 1, 1), perturbed, worst)
            broken_by = torch.where(fails, number, broken_by)
            standing = standing & ~fails
        rounded = count_correct(self.model, (worst * 255).round() / 255, shard.labels)
        delta = (worst - shard.images).flatten(1)
        return {
            "adv_correct": standing,
            "adv_broken_by": broken_by,
            "adv_Linf": delta.abs().amax(1),
            "adv_L2": delta.norm(dim=1),
            "adv_rounded": (broken_by > 0) & ~rounded,
            "adv_image": worst,
        }

    def _inside(self, shard: Shard, perturbed: Tensor) -> Tensor:
        """[n]: which images lie in the ball and the pixel box."""
        length = (perturbed - shard.images).flatten(1).norm(ORDERS[self.norm], dim=1)
        in_box = ((perturbed >= 0) & (perturbed <= 1)).flatten(1).all(1)
        return (length <= self.power * (1 + INSIDE) + 1e-7) & in_box


def autoattack(model: nn.Module, num_classes: int, norm: str, power: float, names: list[str], seed: int) -> dict:
    """Name -> attack for members of AutoAttack (Croce and Hein 2020), by the installed library."""

    def member(name: str) -> Attack:
        return lambda shard, standing: run_member(name, model, shard, standing, norm, power, num_classes, seed)

    return {name: member(name) for name in names}


def plain_pgd(model: nn.Module, norm: str, power: float, seed: int) -> dict:
    """PGD (Madry et al. 2018) in the ball, by our own attacks."""
    threat = {"Linf": Linf, "L2": L2}[norm]()

    def attack(shard: Shard, standing: Tensor) -> Tensor:
        allowed = AttackSet.within(threat.bind(shard.images, shard.labels), power, power)
        attempt = MEMBERS["pgd"](model, shard.labels, allowed, seed, shard.index, PGD_STEPS, standing)
        return (shard.images + attempt.delta).clamp(0, 1)

    return {"pgd": attack}
