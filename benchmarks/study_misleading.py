"""Ensembles on models whose gradients mislead: one LeNet, wrapped so that its gradients or answers are spoilt.

python benchmarks/study_misleading.py [WRAPPER ...] [--attacks=standard,lean] [--images=100] [--cells=0.1/0.3]

The wrapped model is right on (nearly) the same images as the plain one, and an image that breaks the plain one breaks
most of the others: what an ensemble leaves beyond the first row is what it was misled about. Some minutes a row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.study_ensemble import NETS, trained
from datasets.registry import load_dataset
from foundations.results import markdown_table
from testing.evaluations import AttackEvaluation
from testing.gradient_masking import masking_warnings
from testing.shards import Shard
from threat_specification import ProjectedDisplacement
from threat_specification.attacks.registry import attacks_named
from threat_specification.attacks.search import Cell

STEPS, SEED, LEVELS = 40, 0, 8
HEADS = ("wrapped so that", "PD, radius", "attacks", "without attack", "left", "passes", "warned of")


class OtherGradient(torch.autograd.Function):
    """The images themselves; their gradient is changed on the way back."""

    @staticmethod
    def forward(context, images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        context.change = change
        return images.clone()

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return context.change(gradient), None


def random_field(gradient: Tensor) -> Tensor:
    """The same field for every image and call."""
    field = torch.randn(gradient.shape[1:], generator=torch.Generator().manual_seed(1))
    return field.expand_as(gradient).clone()


def levels(images: Tensor) -> Tensor:
    return (images * (LEVELS - 1)).round() / (LEVELS - 1)


# Name -> what is done to the images, and to the logits.
WRAPPERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "nothing is changed": (lambda x: x, lambda z: z),
    "the gradient is negated": (lambda x: OtherGradient.apply(x, torch.neg), lambda z: z),
    "the gradient is a fixed random field": (lambda x: OtherGradient.apply(x, random_field), lambda z: z),
    "x + 0.02 sin(2000 x)": (lambda x: x + 0.02 * (2000 * x).sin(), lambda z: z),
    "logits + 0.05 sin(1000 logits)": (lambda x: x, lambda z: z + 0.05 * (1000 * z).sin()),
    "logits are rounded to 0.1": (lambda x: x, lambda z: (z * 10).round() / 10),
    "8 levels of input": (levels, lambda z: z),
    "8 levels, gradient passed straight through": (lambda x: x + (levels(x) - x).detach(), lambda z: z),
    "the input is detached": (lambda x: x.detach(), lambda z: z),
}


class Wrapped(nn.Module):
    """A model behind a wrapper by its name. Gradients reach the logits even where they do not reach the images."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, (self.before, self.after) = model, WRAPPERS[name]

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.model(self.before(images))) + 0 * images.sum()


def row(net: nn.Module, threat: ProjectedDisplacement, shard: Shard, name: str, cell: Cell, ensemble: str) -> list[str]:
    members = attacks_named([ensemble], 10)
    evaluation = AttackEvaluation(Wrapped(net, name), threat, cell, members, STEPS, SEED)
    found = {column.removeprefix("N_adv_"): values for column, values in evaluation(shard).items()}
    robust, right = found["correct"], found["clean_prediction"] == shard.labels
    told = masking_warnings(evaluation, shard, robust, found["broken_by"].numpy(), found["no_answer"].numpy())
    passes = float((found["forwards"] + found["backwards"]).float().mean())
    figures = [f"{float(rows.float().mean()):.3f}" for rows in (right, robust)]
    set_of = f"{cell.threshold:g}, {cell.radius:g}"
    return [name, set_of, ensemble, *figures, f"{passes:.0f}", told[0] if told else "nothing"]


def main(words: list[str]) -> None:
    flags = dict(word[2:].split("=") for word in words if word.startswith("--"))
    names = [word for word in words if not word.startswith("--")] or list(WRAPPERS)
    torch.set_num_threads(1)
    net, threat = trained(NETS[flags.get("net", "standard")])
    test, images = load_dataset("mnist_5k").test, int(flags.get("images", 100))
    shard = Shard(0, test.pixels(slice(0, images)), test.labels[:images], torch.arange(images))
    lines = []
    for name in names:
        for cell in (Cell(*map(float, text.split("/"))) for text in flags.get("cells", "0.1/0.3").split(",")):
            for ensemble in flags.get("attacks", "standard,lean").split(","):
                lines.append(row(net, threat, shard, name, cell, ensemble))
                print("\t".join(lines[-1]), flush=True)
    print("\n" + markdown_table(list(HEADS), lines))


if __name__ == "__main__":
    main(sys.argv[1:])
