"""What `test` measures of every example: clean predictions, AutoAttack, and attacks inside a nonisotropic set.

broken_by columns: -1 wrong without any attack, 0 still right after all of them, i > 0 broken by attack number i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from testing.autoattack import run_member
from testing.shards import Shard, count_correct
from threat_specification.attacks.pgd import AttackSet, pgd
from threat_specification.attacks.random_numbers import uniform
from threat_specification.base import Threat

STANDING, WRONG_WITHOUT = 0, -1
INSIDE = 1e-5  # relative: float32 can tell no better whether a point is in the set


@dataclass
class CleanEvaluation:
    """The prediction without attack."""

    model: nn.Module
    columns = {"standard_prediction": "int64", "standard_correct": "bool"}

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        with torch.no_grad():
            prediction = self.model(shard.images).argmax(1)
        return {"standard_prediction": prediction, "standard_correct": prediction == shard.labels}


@dataclass
class AttackEvaluation:
    """Attacks one after the other, each on what the earlier ones left standing.

    prefix   of the columns: adv or N_adv
    attacks  name -> function of (shard, standing [n] bool) that returns perturbed images [n,C,H,W]
    verify   (shard, perturbed images) -> [n] bool: which lie inside the set; the others do not count
    extra    columns measured on what was found: name -> function of (shard, perturbed images)
    """

    model: nn.Module
    prefix: str
    attacks: dict[str, Callable[[Shard, Tensor], Tensor]]
    verify: Callable[[Shard, Tensor], Tensor]
    extra: dict[str, Callable[[Shard, Tensor], Tensor]] = field(default_factory=dict)
    sample: tuple[Tensor, Tensor] | None = None  # images of shard 0, clean and perturbed, for pictures

    @property
    def columns(self) -> dict[str, str]:
        named = {f"{self.prefix}_{name}": "float32" for name in self.extra}
        return {f"{self.prefix}_correct": "bool", f"{self.prefix}_broken_by": "int64", **named}

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        standing = count_correct(self.model, shard.images, shard.labels)
        broken_by = torch.where(standing, STANDING, WRONG_WITHOUT)
        worst = shard.images.clone()
        for number, attack in enumerate(self.attacks.values(), start=1):
            if not bool(standing.any()):
                break
            perturbed = attack(shard, standing)
            fails = ~count_correct(self.model, perturbed, shard.labels) & standing & self.verify(shard, perturbed)
            worst = torch.where(fails.view(-1, 1, 1, 1), perturbed, worst)
            broken_by = torch.where(fails, number, broken_by)
            standing = standing & ~fails
        if shard.number == 0:
            self.sample = (shard.images, worst)
        measured = {f"{self.prefix}_{name}": measure(shard, worst) for name, measure in self.extra.items()}
        return {f"{self.prefix}_correct": standing, f"{self.prefix}_broken_by": broken_by, **measured}


def autoattack_evaluation(
    model: nn.Module, num_classes: int, norm: str, power: float, members: list[str], seed: int
) -> AttackEvaluation:
    """AutoAttack (Croce and Hein 2020) in an l-inf or l2 ball, by the installed library."""

    def attack(name: str) -> Callable[[Shard, Tensor], Tensor]:
        return lambda shard, standing: run_member(name, model, shard, standing, norm, power, num_classes, seed)

    def verify(shard: Shard, perturbed: Tensor) -> Tensor:
        order = float("inf") if norm == "Linf" else 2
        length = (perturbed - shard.images).flatten(1).norm(order, dim=1)
        return (length <= power * (1 + INSIDE) + 1e-7) & _in_pixel_box(perturbed)

    return AttackEvaluation(model, "adv", {name: attack(name) for name in members}, verify)


def nonisotropic_evaluation(
    model: nn.Module, threat: Threat, threshold: float, radius: float, projection: str, steps: int, seed: int
) -> AttackEvaluation:
    """PGD inside {threat <= threshold}, an l-inf radius and the pixel box, projected in every step."""

    def context(shard: Shard) -> dict[str, Tensor]:
        return {"indices": shard.index} if threat.segmented else {}

    def allowed(shard: Shard) -> AttackSet:
        bound = threat.bind(shard.images, shard.labels, **context(shard))
        return AttackSet.within(bound, threshold, radius, method=projection)

    def attack(step_size: float, draw: int) -> Callable[[Shard, Tensor], Tensor]:
        def run(shard: Shard, standing: Tensor) -> Tensor:
            inside = allowed(shard)
            start = inside.between(uniform(seed, shard.index, draw, tuple(shard.images.shape[1:])))
            return (shard.images + pgd(model, shard.labels, inside, start, steps, step_size)[1]).clamp(0, 1)

        return run

    def measure(shard: Shard, perturbed: Tensor) -> Tensor:
        return threat.evaluate(shard.images, shard.labels, perturbed, **context(shard))

    def length(shard: Shard, perturbed: Tensor) -> Tensor:
        return (perturbed - shard.images).flatten(1).abs().amax(1)

    def verify(shard: Shard, perturbed: Tensor) -> Tensor:
        inside, delta = allowed(shard), perturbed - shard.images
        slack = radius * INSIDE + 1e-7
        within = ((delta >= inside.lower - slack) & (delta <= inside.upper + slack)).flatten(1).all(1)
        return within & (measure(shard, perturbed) <= threshold * (1 + INSIDE) + 1e-7) & _in_pixel_box(perturbed)

    attacks = {"pgd_coarse": attack(radius / 4, 0), "pgd_fine": attack(2.5 * radius / steps, 1)}
    return AttackEvaluation(model, "N_adv", attacks, verify, {"threat": measure, "Linf": length})


def _in_pixel_box(images: Tensor) -> Tensor:
    flat = images.flatten(1)
    return ((flat >= 0) & (flat <= 1)).all(1)
