"""Effect of the projection inside an attack's steps: accuracy left by APGD on trained nets, at equal steps and time.

The nets are those of `train` (mnist_5k, lenet: as usual, l-inf adversarially, inside the PD set); runs that are
complete are read, others made.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from cli.main import main as command_line
from cli.main import runner_parser
from cli.runner_registry import desc_class
from datasets.registry import load_dataset
from foundations.environment import make_environment
from runners.inputs import read_model, read_threat
from threat_specification import ProjectedDisplacement
from threat_specification.attacks.base import AttackSet, Task
from threat_specification.attacks.registry import ATTACKS

RECIPE = ["--training_steps=20ep", "--batch_size=128"]
NETS = {
    "as usual": [],
    "l-inf trained": ["--adv_train", "--adv_train_attack_iter=5"],
    "PD trained": ["--N_adv_train", "--N_adv_train_attack_iter=5"],
}
SETS = {"radius 0.2": 0.2, "pixel box alone": 1.0}
THRESHOLD, IMAGES, STEPS = 0.05, 60, 40
FAR = 1e6  # bounds that never bind


def clip_and_scale(allowed: AttackSet, delta: Tensor) -> Tensor:
    return allowed.bound.scale(delta, allowed.threshold, allowed.lower, allowed.upper)


def exact_then_clip_and_scale(allowed: AttackSet, delta: Tensor) -> Tensor:
    nowhere = torch.full_like(delta, FAR)
    return clip_and_scale(allowed, allowed.bound.project(delta, allowed.threshold, -nowhere, nowhere))


def alternate_twice_and_scale(allowed: AttackSet, delta: Tensor) -> Tensor:
    nowhere = torch.full_like(delta, FAR)
    for _ in range(2):
        delta = allowed.bound.project(delta, allowed.threshold, -nowhere, nowhere)
        delta = torch.minimum(torch.maximum(delta, allowed.lower), allowed.upper)
    return clip_and_scale(allowed, delta)


PROJECTIONS: dict[str, Callable[[AttackSet, Tensor], Tensor]] = {
    "clip, scale": clip_and_scale,
    "exact, clip, scale": exact_then_clip_and_scale,
    "two alternations, scale": alternate_twice_and_scale,
    "joint exact": AttackSet.project,
}


@dataclass(frozen=True)
class Projected(AttackSet):
    """A set whose points are found by another projection."""

    by: Callable[[AttackSet, Tensor], Tensor] = AttackSet.project

    def project(self, delta: Tensor) -> Tensor:
        return self.by(self, delta)


def trained(words: list[str]) -> tuple[nn.Module, ProjectedDisplacement]:
    """The net of a train command, and the anchors of its data set."""
    common = ["--dataset_name=mnist_5k", "--model_name=lenet", *RECIPE]
    for command in (["compute_threat", common[0], "--quiet"], ["train", *common, *words, "--quiet"]):
        if command_line(command):
            raise SystemExit(f"failed: {' '.join(command)}")
    desc = desc_class("train").from_flags(runner_parser("train", [*common, *words]).parse([*common, *words]))
    environment = make_environment("", "", "cpu", True, 0)
    spec = load_dataset("mnist_5k").info
    return read_model(desc, desc.model, environment, spec).eval(), read_threat(desc.anchors, environment)


def accuracy_left(net: nn.Module, allowed: AttackSet, labels: Tensor, steps: int) -> tuple[float, float]:
    """Share of the images still right after APGD, and the seconds it took without ending early."""
    robust = net(allowed.bound.examples).argmax(1) == labels
    task = Task(net, labels, allowed, robust, 0, torch.arange(len(labels)), steps)
    begun = time.perf_counter()
    found = ATTACKS["apgd_ce"](task)
    return float((robust & ~found.success).float().mean()), time.perf_counter() - begun


def table(net: nn.Module, threat: ProjectedDisplacement, radius: float) -> list[tuple[str, float, float, int]]:
    """Projection, accuracy after STEPS steps, accuracy after the time that joint exact takes, steps in that time."""
    test = load_dataset("mnist_5k").test
    images, labels = test.pixels(slice(0, IMAGES)), test.labels[:IMAGES]
    left, seconds = {}, {}
    sets = {
        name: Projected(**vars(AttackSet.within(threat.bind(images, labels), THRESHOLD, radius)), by=by)
        for name, by in PROJECTIONS.items()
    }
    for name, allowed in sets.items():
        left[name], seconds[name] = accuracy_left(net, allowed, labels, STEPS)
    rows = []
    for name, allowed in sets.items():
        allowed = replace(allowed, bound=threat.bind(images, labels))
        steps = max(1, round(STEPS * seconds["joint exact"] / seconds[name]))
        rows.append((name, left[name], accuracy_left(net, allowed, labels, steps)[0], steps))
    return rows


def main() -> None:
    torch.set_num_threads(1)
    print("| net | set | projection | 40 steps | equal time | steps in it |\n|---|---|---|---|---|---|")
    for kind, words in NETS.items():
        net, threat = trained(words)
        for name, radius in SETS.items():
            for projection, equal_steps, equal_time, steps in table(net, threat, radius):
                figures = f"{equal_steps:.2f} | {equal_time:.2f} | {steps}"
                print(f"| {kind} | PD {THRESHOLD}, {name} | {projection} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
