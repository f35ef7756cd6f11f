"""Cost of a step of our attacks: against the installed AutoAttack and torchattacks in l-inf, and under PD."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bench_projection import photographs
from datasets.info import DatasetInfo
from models.registry import build_model
from threat_specification import AnchorSet, Intersection, Linf, ProjectedDisplacement
from threat_specification.attacks.apgd import ascend_from
from threat_specification.attacks.base import AttackSet, Task, input_gradient
from threat_specification.attacks.losses import LOSSES
from threat_specification.attacks.pgd import descend
from threat_specification.attacks.starts import scaled_noise
from threat_specification.intersection import BoundIntersection
from threat_specification.projected_displacement.bound import BoundProjectedDisplacement
from threat_specification.projected_displacement.warm_start import WarmStart

BATCH, STEPS, RUNS = 64, 6, 5
RADIUS = 8 / 255
TORCHATTACKS = Path(__file__).parents[1] / ".venv" / "torchattacks"  # apart: it overwrites files of robustbench
COLOUR = DatasetInfo(
    summary="", loader="", shape=(3, 32, 32), classes=tuple("0123456789"), mean=(0.5,) * 3, std=(0.25,) * 3
)


def _warm_of(inside: AttackSet) -> WarmStart:
    """The warm start of the projection onto the set's first threat, PD."""
    assert isinstance(inside.bound, BoundIntersection)
    bound = inside.bound.members[0][0]
    assert isinstance(bound, BoundProjectedDisplacement) and bound.warm is not None
    return bound.warm


class NeverWrong(nn.Module):
    """A net whose answer is always just about the label: no attack ends early, and gradients do not vanish."""

    def __init__(self, net: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.net, self.labels = net, labels

    def forward(self, images: Tensor) -> Tensor:
        logits = self.net(images)
        label = self.labels[: len(logits)].view(-1, 1)
        lead = logits.amax(1, keepdim=True) - logits.gather(1, label) + 0.1
        return logits.scatter_add(1, label, lead.detach())


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A ResNet-20, images 3x32x32 and labels."""
    torch.manual_seed(0)
    images, labels = photographs(BATCH, 2)
    return NeverWrong(build_model("resnet_20", COLOUR).eval(), labels).eval(), images.float() / 255, labels


def ratios(ours: Callable[[], object], others: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median of our time over each other's, in turns."""
    times: dict[str, list[float]] = {name: [] for name in ["ours", *others]}
    for _ in range(RUNS + 1):
        for name, run in {"ours": ours, **others}.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {
        name: statistics.median(a / b for a, b in zip(times["ours"][1:], times[name][1:], strict=True))
        for name in others
    }


def rows() -> list[tuple[str, float, str, str]]:
    """(case, ratio, floor, aim)."""
    from pyautoattack.autopgd_base import APGDAttack

    model, images, labels = problem()
    robust, index = torch.ones(BATCH, dtype=torch.bool), torch.arange(BATCH)
    ball = AttackSet.within(Linf().bind(images, labels), RADIUS, RADIUS)
    start = torch.zeros_like(images)
    theirs = APGDAttack(model, n_iter=STEPS, norm="Linf", eps=RADIUS, seed=0, loss="ce", device="cpu")

    def ours() -> object:
        return ascend_from(start, Task(model, labels, ball, robust, 0, index, STEPS), "ce")

    def gradient_at(delta: Tensor) -> tuple[Tensor, None]:
        inputs = (images + delta).requires_grad_(True)
        return input_gradient(LOSSES["ce"](model(inputs), labels, None).sum(), inputs), None

    made = [
        (
            "APGD in l-inf, against the installed AutoAttack's",
            ours,
            {"": lambda: theirs.perturb(images, labels)},
            "1.05",
        )
    ]
    if TORCHATTACKS.is_dir():
        sys.path.append(str(TORCHATTACKS))
        import torchattacks

        attack = torchattacks.PGD(model, eps=RADIUS, alpha=RADIUS / 4, steps=STEPS)
        made.append(
            (
                "PGD in l-inf, against torchattacks'",
                lambda: descend(gradient_at, ball, start, STEPS, RADIUS / 4),
                {"": lambda: attack(images, labels)},
                "1.1",
            )
        )
    for threshold in (0.1, 0.001):
        members = [(ProjectedDisplacement(anchors=AnchorSet(*photographs(500, 1))), threshold), (Linf(), 32 / 255)]
        inside = AttackSet.within(Intersection(members).bind(images, labels), 1.0, 32 / 255)
        begin = scaled_noise(inside, 0, index, 0)

        def under_pd(inside: AttackSet = inside, begin: Tensor = begin) -> object:
            return ascend_from(begin, Task(model, labels, inside, robust, 0, index, STEPS), "ce")

        under_pd()
        warm = _warm_of(inside)
        binds = float((warm.multipliers > 0).any(1).float().mean())
        name = f"APGD under PD {threshold}, N=500, radius 32/255 (binds for {binds:.0%}), against our own l-inf step"
        made.append((name, under_pd, {"": ours}, "1.4"))
    return [
        (f"{case}: ResNet-20, 3x32x32, B={BATCH}, time of {STEPS} steps", ratios(run, others)[""], floor, "1.15")
        for case, run, others, floor in made
    ]
