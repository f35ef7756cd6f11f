"""The ensemble against a stronger attack that shares nothing with its members but the projection.

python benchmarks/study_ensemble.py [NET ...] [--images=200] [--cells=0.1/0.3,0.05/0.3]

Trains the networks (mnist_5k, LeNet, 6 epochs; kept as runs of any command), attacks them by the ensemble, then what
that leaves by descents from ten other corners on the margin and one towards each of nine targets, 300 steps each.
A quarter of an hour for each network and cell; a row is printed when it is done.
"""

from __future__ import annotations

import math
import sys
import time
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
from threat_specification.attacks.random_numbers import uniform
from threat_specification.attacks.registry import attacks_named
from threat_specification.attacks.search import Cell, Search, attack_set

DATA = ("--dataset_name=mnist_5k", "--selection_space=raw")  # the anchors of the table in docs/results.md
RECIPE = (*DATA, "--model_name=lenet", "--training_steps=6ep")
INSIDE = ("--N_adv_train", "--N_adv_train_attack_iter=5", "--N_adv_train_step=5", "--adv_start=last")
NETS: dict[str, tuple[str, ...]] = {
    "standard": (),
    "l-inf 0.1": ("--adv_train", "--adv_train_attack_power_Linf=0.1"),
    "l-inf 0.2": ("--adv_train",),
    "l-inf 0.3": ("--adv_train", "--adv_train_attack_power_Linf=0.3"),
    "in the set": INSIDE,
    "both": ("--adv_train", *INSIDE),
}
CELLS = ("0.1/0.3", "0.05/0.3", "0.1/0.2", "0.2/0.3")
CORNERS, TARGETS, STEPS, MOMENTUM, SEED = 10, 9, 300, 0.9, 999


def trained(words: tuple[str, ...]) -> tuple[nn.Module, ProjectedDisplacement]:
    """The net of a train command, and the threat over the anchors of its data set."""
    for command in (["compute_threat", *DATA, "--quiet"], ["train", *RECIPE, *words, "--quiet"]):
        if command_line(command):
            raise SystemExit(f"failed: {' '.join(command)}")
    flags = [*RECIPE, *words]
    desc = desc_class("train").from_flags(runner_parser("train", flags).parse(flags))
    environment = make_environment("", "", "cpu", True, 0)
    net = read_model(desc, desc.model, environment, load_dataset("mnist_5k").info).eval()
    return net.requires_grad_(False), read_threat(desc.anchors, environment)


def margin(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Logit of the target, else the largest other, minus that of the label."""
    label = labels.view(-1, 1)
    others = logits.scatter(1, label, -torch.inf).amax(1) if targets is None else logits.gather(1, targets).squeeze(1)
    return others - logits.gather(1, label).squeeze(1)


def descend(net: nn.Module, x: Tensor, y: Tensor, cell: Cell, threat: ProjectedDisplacement, index: Tensor, draw: int,
            targets: Tensor | None) -> Tensor:  # fmt: skip
    """[n]: which images break on the way from a projected corner, checked by the set itself."""
    allowed = attack_set(threat.bind(x, y), cell)
    up = uniform(SEED, index, draw, tuple(x.shape[1:])) < 0.5
    delta = allowed.project(torch.where(up, allowed.upper, allowed.lower))
    broken, total = torch.zeros(len(x), dtype=torch.bool), torch.zeros_like(x)
    for step in range(STEPS):
        inputs = (x + delta).clamp(0, 1).requires_grad_(True)
        logits = net(inputs)
        broken |= (logits.argmax(1) != y) & allowed.holds(delta)
        (gradient,) = torch.autograd.grad(margin(logits, y, targets).sum(), inputs)
        total = MOMENTUM * total + gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)
        unit = total / total.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)
        length = cell.radius * math.sqrt(x[0].numel()) * (1 + math.cos(math.pi * step / STEPS)) / 2
        delta = allowed.project(delta + length * unit)
    return broken | ((net((x + delta).clamp(0, 1)).argmax(1) != y) & allowed.holds(delta))


def stronger(net: nn.Module, x: Tensor, y: Tensor, cell: Cell, threat: ProjectedDisplacement, left: Tensor) -> Tensor:
    """[n]: which of the images `left` the stronger attack breaks."""
    broken, index = torch.zeros_like(left), torch.arange(len(x))
    order = net(x).scatter(1, y.view(-1, 1), -torch.inf).argsort(1, descending=True)
    for draw in range(CORNERS + TARGETS):
        rows = (left & ~broken).nonzero().flatten()
        if not len(rows):
            break
        rank = draw - CORNERS
        targets = order[rows, rank : rank + 1] if rank >= 0 else None
        broken[rows[descend(net, x[rows], y[rows], cell, threat, index[rows], draw, targets)]] = True
    return broken


def main(words: list[str]) -> None:
    flags = dict(word[2:].split("=") for word in words if word.startswith("--"))
    names = [word for word in words if not word.startswith("--")] or list(NETS)
    images, cells = int(flags.get("images", 200)), flags.get("cells", ",".join(CELLS)).split(",")
    torch.set_num_threads(1)
    test = load_dataset("mnist_5k").test
    x, y = test.pixels(slice(0, images)), test.labels[:images]
    print("| net | PD, radius | without attack | ensemble | stronger | seconds |\n|---|---|---|---|---|---|")
    for name in names:
        net, threat = trained(NETS[name])
        for cell in (Cell(*map(float, text.split("/"))) for text in cells):
            search = Search(net, threat.bind(x, y), y, torch.arange(images), cell, 40, 0)
            begun = time.process_time()
            search.attack(cell, attacks_named([], 10))
            seconds, left = time.process_time() - begun, search.robust(cell)
            beaten = left & ~stronger(net, x, y, cell, threat, left)
            rates = " | ".join(f"{float(rows.float().mean()):.3f}" for rows in (search.right, left, beaten))
            print(f"| {name} | {cell.threshold:g}, {cell.radius:g} | {rates} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
