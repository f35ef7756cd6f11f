"""Members of AutoAttack (Croce and Hein 2020, arXiv 2003.01690), by the library that RobustBench brings."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from foundations.desc import derive_seed
from testing.shards import Shard

# The standard version, in its order. Targeted DLR needs 4 classes; untargeted DLR takes its place with 3.
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")


def members_for(attack_type: str, num_classes: int) -> list[str]:
    """The members that a number of classes allows, of `auto` (all) or `apgd` (cross-entropy alone)."""
    if attack_type == "apgd":
        return ["apgd-ce"]
    targeted = {2: [], 3: ["apgd-dlr"]}.get(num_classes, ["apgd-t"])
    return ["apgd-ce", *targeted, "fab-t", "square"]


def run_member(
    name: str, model: nn.Module, shard: Shard, standing: Tensor, norm: str, power: float, num_classes: int, seed: int
) -> Tensor:
    """Perturbed images [n,C,H,W] of a shard; rows that are not `standing` come back as they were.

    Seeded by (seed, first index of the shard, member), whatever ran before; the global generators are left alone.
    """
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    number = derive_seed(seed, int(shard.index[0]), name) % 2**31
    device = shard.images.device
    adversary = AutoAttack(model, norm=norm, eps=power, seed=number, version="standard", device=device)
    adversary.attacks_to_run = [name]
    adversary.verbose = False
    # The library assumes at least 10 classes.
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = min(9, num_classes - 1)
    perturbed = shard.images.clone()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        found, _ = adversary.run_standard_evaluation(
            shard.images[standing], shard.labels[standing], batch_size=len(shard.labels)
        )
    perturbed[standing] = found.clamp(0, 1)
    return perturbed
