"""A choice of attacks and of their order: every candidate alone on several networks, with its passes, beside the truth.

python benchmarks/study_audit.py [NET ...] [--images=100] [--seconds=60]     an hour of one core; results are kept
python benchmarks/study_audit.py --table                      the tables

Attacks are chosen on the networks CHOOSE and judged on the others. The truth is the exact answer for digits, elsewhere
what any candidate breaks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from cli.main import main as command_line
from cli.main import runner_parser
from cli.runner_registry import desc_class
from datasets.registry import load_dataset
from foundations.environment import make_environment
from runners.inputs import read_model, read_threat
from testing.audit import BROKEN, PASSES, RIGHT, Audit, AuditEvaluation
from testing.evaluations import AttackEvaluation
from testing.exact import ExactEvaluation, Known
from testing.exact_network import Network
from testing.shards import Shard
from threat_specification.attacks.apgd import apgd
from threat_specification.attacks.base import Attack
from threat_specification.attacks.pgd import momentum_pgd, targeted_pgd
from threat_specification.attacks.registry import ATTACKS, attacks_named
from threat_specification.attacks.search import Cell

DIGITS = ("--dataset_name=digits", "--model_name=lenet_64", "--training_steps=30ep")
MNIST = ("--dataset_name=mnist_5k", "--model_name=lenet", "--training_steps=6ep")
INSIDE = ("--N_adv_train", "--N_adv_train_attack_iter=5", "--N_adv_train_step=5", "--adv_start=last")


@dataclass(frozen=True)
class Case:
    """A network by its training flags, the set, and whether programs can tell the truth."""

    flags: Sequence[str]
    cell: Cell
    exact: bool = False


CASES: dict[str, Case] = {
    "digits, l-inf": Case((*DIGITS, "--adv_train"), Cell(0.15, 0.2), True),
    "digits, standard": Case(DIGITS, Cell(0.1, 0.1), True),
    "digits, in the set": Case((*DIGITS, "--N_adv_train"), Cell(0.2, 0.2), True),
    "mnist_5k, l-inf 0.2": Case((*MNIST, "--adv_train"), Cell(0.1, 0.3)),
    "mnist_5k, in the set": Case((*MNIST, *INSIDE), Cell(0.1, 0.3)),
    "mnist_5k, both": Case((*MNIST, "--adv_train", *INSIDE), Cell(0.2, 0.3)),
    "mnist_5k, l-inf 0.3": Case((*MNIST, "--adv_train", "--adv_train_attack_power_Linf=0.3"), Cell(0.1, 0.3)),
}
CHOOSE = ("digits, l-inf", "mnist_5k, l-inf 0.2")

PM = "probability_margin"
CANDIDATES: dict[str, Attack] = {
    **{
        f"{loss} {start} {share:g}": partial(momentum_pgd, draw=5000 + 100 * k, loss=loss, starts=(start,), share=share)
        for k, (loss, start, share) in enumerate(
            [
                ("ce", "bright", 1.0),
                ("ce", "bright", 2.0),
                ("ce", "corner", 1.0),
                ("ce", "corner", 2.0),
                ("dlr", "corner", 1.0),
                ("dlr", "smooth_corner", 1.0),
                ("margin", "corner", 1.0),
                ("margin", "smooth_corner", 1.0),
                (PM, "bright", 1.0),
                (PM, "corner", 1.0),
                (PM, "corner", 2.0),
                (PM, "smooth_corner", 1.0),
                (PM, "noise", 1.0),
            ]
        )
    },
    **{
        f"targeted {start} {count} {share:g} {direction or 'l2'}": partial(
            targeted_pgd, draw=7000 + 100 * k, starts={start: count}, share=share, direction=direction
        )
        for k, (start, count, share, direction) in enumerate(
            [
                ("bright", 9, 0.5, ""),
                ("corner", 9, 0.5, ""),
                ("corner", 9, 0.5, "sign"),
                ("corner", 3, 0.5, ""),
                ("corner", 3, 0.5, "sign"),
                ("bright", 3, 0.5, ""),
                ("corner", 3, 1.0, ""),
                ("smooth_corner", 9, 0.5, ""),
            ]
        )
    },
    "apgd ce": ATTACKS["apgd_ce"],
    "apgd ce corner": partial(apgd, draw=11, loss="ce", start="corner"),
    f"apgd {PM}": partial(apgd, draw=12, loss=PM),
    f"apgd {PM} corner": partial(apgd, draw=13, loss=PM, start="corner"),
    "apgd dlr": ATTACKS["apgd_dlr"],
    "apgd targeted": ATTACKS["apgd_t_dlr"],
}


def measured(case: Case, images: int, seconds: float) -> dict[str, numpy.ndarray]:
    """The arrays of the audit of one case, and the truth."""
    data = case.flags[0]
    for command in (["compute_threat", data, "--quiet"], ["train", *case.flags, "--quiet"]):
        if command_line(command):
            raise SystemExit(f"failed: {' '.join(command)}")
    desc = desc_class("train").from_flags(runner_parser("train", list(case.flags)).parse(list(case.flags)))
    environment = make_environment("", "", "cpu", True, 0)
    loaded = load_dataset(desc.dataset_name)
    net = read_model(desc, desc.model, environment, loaded.info).eval().requires_grad_(False)
    threat = read_threat(desc_class("compute_threat").from_flags(runner_parser("compute_threat", [data]).parse([data])),
                         environment)  # fmt: skip
    x, y = loaded.test.pixels(slice(0, images)), loaded.test.labels[:images]
    members = attacks_named([], loaded.info.num_classes)
    attacked = AttackEvaluation(net, threat, case.cell, members, 40, 0)
    evaluation = AuditEvaluation(attacked, {**members, **CANDIDATES})
    shard = Shard(0, x, y, torch.arange(len(y)))
    found = {name: rows.numpy() for name, rows in evaluation(shard).items()}
    if case.exact and seconds:
        broken = torch.from_numpy(found[BROKEN].any(1))
        known = {k: Known(bool(hit), 0.0, x[k : k + 1]) for k, hit in enumerate(broken.tolist())}
        answers = ExactEvaluation(attacked, Network.read(net, tuple(x.shape[1:])), seconds, known=known)(shard)
        found |= {name: answers[name].numpy() for name in ("exact_robust", "exact_broken")}
    return found | {"names": numpy.array(list(evaluation.attacks))}


def audit_of(found: dict[str, numpy.ndarray]) -> Audit:
    names = [str(name) for name in found["names"]]
    passes, broken = (found[name].reshape(-1, len(names), 1) for name in (PASSES, BROKEN))
    return Audit(names, found[RIGHT], passes, broken)


def main(words: list[str]) -> None:
    flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    names = [word for word in words if not word.startswith("--")] or list(CASES)
    torch.set_num_threads(1)
    folder = Path(os.environ.get("NONISOTROPIC_HOME", "output")) / "study_audit"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / f"{name}.npz"
        if not path.exists() and "table" not in flags:
            arrays: dict[str, Any] = measured(
                CASES[name], int(flags.get("images", 100)), float(flags.get("seconds", 60))
            )
            numpy.savez(path, **arrays)
        if path.exists():
            with numpy.load(path) as file:
                found = dict(file)
            audit = audit_of(found)
            print(f"\n## {name}: clean {audit.right.mean():.3f}, "
                  f"any {(audit.right & ~audit.broken.any((1, 2))).mean():.3f}")  # fmt: skip
            if "exact_robust" in found:
                print("exact robust", found["exact_robust"].mean(), "not broken", 1 - found["exact_broken"].mean())
            for attack in audit.names:
                number = audit.names.index(attack)
                print(f"{attack:42s} {audit.accuracy(attack)[0]:.3f} {audit.passes[audit.right, number].mean():8.1f}"
                      f" {audit.optimality(400)[attack]:.3f} {audit.only(attack, audit.names)}")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
