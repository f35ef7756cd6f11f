"""Sections on time and memory, as ratios of things timed in turns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.gpu.bench import Bench
from foundations.step import Step
from threat_specification import L2, AnchorSet, Linf
from threat_specification.attacks.apgd import ascend_from
from threat_specification.attacks.base import AttackSet, Task
from threat_specification.base import Threat
from threat_specification.projected_displacement.bound import BoundProjectedDisplacement
from training.adversaries import PGD
from training.batch import Batch
from training.network import MixedPrecision
from training.objectives import Parts

SMALL, LARGE = 8 / 255, 32 / 255
BIG_MEMORY = 32 << 30  # bytes of a GPU that takes as many anchors as ImageNet has at 50 a class


def threat(bench: Bench) -> None:
    """An evaluation of the bound threat beside products of matrices of the same sizes."""
    for batch, count, side in bench.sized(((512, 500, 32), (512, 5000, 32), (64, 2000, 224)), ((8, 40, 32),)):
        case = f"B={batch} N={count} D={3 * side * side}"
        images, labels = bench.examples(batch, side)
        made, delta = bench.threat(count, side), 0.1 * bench.noise(*images.shape)
        assert made.anchors is not None
        flat, matrix = delta.flatten(1), made.anchors.floats()
        half, half_matrix = flat.bfloat16(), matrix.bfloat16()

        def in_tf32() -> None:
            with bench.tf32():
                torch.mm(flat, matrix.T)

        with bench.peak(f"threat, {case}"):
            bound = made.bind(images, labels)
            full, fast, low, ours = bench.seconds_of(
                lambda: torch.mm(flat, matrix.T),
                in_tf32,
                lambda: torch.mm(half, half_matrix.T),
                lambda: bound.evaluate(delta),
            )
        bench.tell(f"bound threat, fraction of torch.mm in float32, {case}", full / ours, aim="0.9")
        bench.tell(f"bound threat, fraction of torch.mm in TF32, {case}", fast / ours)
        bench.tell(f"bound threat, fraction of torch.mm in bf16, {case}", low / ours)
        bench.tell(f"bound threat, {case}", 1e3 * ours, "ms")
        (binding,) = bench.seconds_of(lambda: made.bind(images, labels))
        bench.tell(f"bind, times an evaluation, {case}", binding / ours)


def projection(bench: Bench) -> None:
    """Projections as attacks ask for them, warm, in steps of signs; beside scaling, and beside l-inf and l2."""
    batch, count = bench.sized((250, 500), (8, 40))
    images, labels = bench.examples(batch)
    made = bench.threat(count)
    towards = bench.photographs(batch, seed=3).float() / 255 - 0.5
    cases: list[tuple[str, Threat, float, float]] = [
        ("l-inf 8/255", Linf(), SMALL, math.inf),
        ("l2 0.5", L2(), 0.5, math.inf),
        *((f"PD {at}, radius {round(255 * radius)}/255", made, at, radius)
          for at, radius in ((0.1, SMALL), (0.1, LARGE), (0.01, LARGE), (0.001, LARGE))),
    ]  # fmt: skip
    for case, each, threshold, radius in cases:
        bound = each.bind(images, labels)
        allowed = AttackSet.within(bound, threshold, radius)
        delta, taken, waits = torch.zeros_like(images), [], 0
        steps = bench.sized(8, 2)
        with bench.peak(case):
            for step in range(steps):
                moved = delta + SMALL * (towards + 0.15 * bench.noise(*images.shape, seed=step)).sign()
                if step == steps - 1:
                    waits = bench.waits(lambda: allowed.project(moved))
                seconds, delta = bench.once(lambda: allowed.project(moved))
                taken.append(seconds)
        ours = sorted(taken[1:])[len(taken[1:]) // 2]
        bench.tell(f"{case}: a projection", 1e3 * ours, "ms")
        bench.tell(f"{case}: waits of the host in one", waits)
        if isinstance(bound, BoundProjectedDisplacement):
            (scaling,) = bench.seconds_of(
                partial(bound.project, moved, threshold, allowed.lower, allowed.upper, "scale")
            )
            bench.tell(f"{case}: times that of scaling", ours / scaling)
            bench.tell(
                f"{case}: scaled instead of projected", bound.fallbacks, f"of {batch * (steps + bench.is_cuda)}", "0"
            )


def hard(bench: Bench) -> None:
    """Projections of steps towards the mean of 40 anchors, far outside: many of them bind at once."""
    batch, count = bench.sized((250, 500), (4, 40))
    images, labels = bench.examples(batch)
    made = bench.threat(count)
    assert made.anchors is not None
    delta = 3 * (made.anchors.floats()[:40].mean(0).view(1, *images.shape[1:]) - images)
    bound = made.bind(images, labels)
    allowed = AttackSet.within(bound, 0.02, LARGE)
    with bench.peak("hard"):
        for name, moved in (("cold", delta), ("warm", delta + 0.01 * bench.noise(*images.shape))):
            seconds, _ = bench.once(lambda: allowed.project(moved))
            (scaling,) = bench.seconds_of(lambda: bound.project(moved, 0.02, allowed.lower, allowed.upper, "scale"))
            bench.tell(f"hard, {name}: a projection", 1e3 * seconds, "ms")
            bench.tell(f"hard, {name}: times that of scaling", seconds / scaling)
    bench.tell("hard: scaled instead of projected", bound.fallbacks, f"of {2 * batch}", "0")


class NeverWrong(nn.Module):
    """A network whose answer is always just about the label: no attack ends early, and gradients do not vanish."""

    def __init__(self, network: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.network, self.labels = network, labels

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        label = self.labels.view(-1, 1)
        lead = logits.amax(1, keepdim=True) - logits.gather(1, label) + 0.1
        return logits.scatter_add(1, label, lead.detach())


def attacks(bench: Bench) -> None:
    """A step of APGD under PD as a multiple of one in an l-inf ball of the same radius."""
    batch, steps = bench.sized((512, 10), (8, 2))
    images, labels = bench.examples(batch)
    model = NeverWrong(bench.network().eval(), labels)
    made = bench.threat(bench.sized(500, 40))
    index = torch.arange(batch, device=bench.device)

    def attack(each: Threat, threshold: float, radius: float) -> Callable[[], object]:
        def run() -> object:
            allowed = AttackSet.within(each.bind(images, labels), threshold, radius)
            task = Task(model, labels, allowed, torch.ones_like(labels, dtype=torch.bool), 0, index, steps)
            return ascend_from(torch.zeros_like(images), task, "ce")

        return run

    for radius, thresholds in ((SMALL, (0.1,)), (LARGE, (0.1, 0.01))):
        ball = f"l-inf {round(255 * radius)}/255"
        runs = {f"PD {at}, radius {round(255 * radius)}/255": attack(made, at, radius) for at in thresholds}
        with bench.peak(f"{' and '.join(runs)}, batch {batch}"):
            plain, *others = bench.seconds_of(attack(Linf(), radius, radius), *runs.values(), least=2)
        bench.tell(f"{ball}: a step, batch {batch}", 1e3 * plain / (steps + 1), "ms")
        for (case, _), seconds in zip(runs.items(), others, strict=True):
            aim = "1.15 where it does not bind" if radius == SMALL else "1.5 where all bind"
            bench.tell(f"{case}: a step, times one of {ball}", seconds / plain, aim=aim)


@dataclass
class Drawn:
    """A batch as a data loader gives it."""

    images: Tensor
    labels: Tensor
    index: Tensor
    share: float = 1.0

    @property
    def partners(self) -> Tensor:
        return self.index.roll(1)

    @property
    def partner_images(self) -> Tensor:
        return self.images.roll(1, 0)

    @property
    def partner_labels(self) -> Tensor:
        return self.labels.roll(1)


def training(bench: Bench) -> None:
    """A step of N_adv_train as a multiple of one of adv_train, and of standard training."""
    batch, steps = bench.sized((256, 10), (8, 2))
    images, labels = bench.examples(batch)
    drawn = Drawn(images, labels, torch.arange(batch, device=bench.device))
    made = bench.threat(bench.sized(500, 40))
    balls = {f"adv_train {round(255 * r)}/255": PGD("adv", Linf(), r, r, r, steps, 0) for r in (SMALL, LARGE)}
    sets = {
        f"N_adv_train {at}, radius {round(255 * radius)}/255": PGD("N_adv", made, at, radius, radius, steps, 0)
        for at, radius in ((0.1, SMALL), (0.1, LARGE), (0.01, LARGE))
    }
    for precision, last in bench.sized((("fp32", False), ("bf16", True)), (("fp32", False),)):
        model = MixedPrecision(bench.network(), precision, channels_last=last).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)

        def step(*adversaries: PGD) -> Callable[[], object]:
            def run() -> None:
                objective, part = Parts(adversaries=adversaries), Batch(drawn)
                optimizer.zero_grad(set_to_none=True)
                objective.score(model, objective.make(model, part, Step(0, 1))).loss.backward()
                optimizer.step()

            return run

        names = ["standard", *balls, *sets]
        with bench.peak(f"training in {precision}, batch {batch}"):
            found = bench.seconds_of(step(), *map(step, [*balls.values(), *sets.values()]), least=2, budget=0.3)
        seconds = dict(zip(names, found, strict=True))
        bench.tell(f"{precision}, standard: images a second, batch {batch}", batch / seconds["standard"])
        for name in balls:
            bench.tell(f"{precision}, {name}, {steps} steps: times standard", seconds[name] / seconds["standard"])
        for name in sets:
            beside = f"adv_train {name.split()[-1]}"
            bench.tell(f"{precision}, {name}: times {beside}", seconds[name] / seconds[beside])


def imagenet(bench: Bench) -> None:
    """Bind, evaluate and project at 224 pixels, over as many anchors as there is room for."""
    memory = torch.cuda.get_device_properties(bench.device).total_memory if bench.is_cuda else 0
    count = bench.sized(50_000 if memory >= BIG_MEMORY else 5_000 if bench.is_cuda else 200, 40)
    batch, side = bench.sized((32, 224), (4, 64))
    case = f"B={batch} N={count} D={3 * side * side}"
    images, labels = bench.examples(batch, side)
    with bench.peak(case):
        made = bench.threat(count, side)
        assert made.anchors is not None
        goal = _towards(made.anchors, batch) - images
        seconds, bound = bench.once(lambda: made.bind(images, labels))
        bench.tell(f"bind, {case}", seconds, "s")
        (evaluating,) = bench.seconds_of(lambda: bound.evaluate(goal))
        bench.tell(f"evaluate, {case}", 1e3 * evaluating, "ms")
        for threshold in (0.1, 0.01):
            allowed = AttackSet.within(bound, threshold, LARGE)
            seconds, _ = bench.once(lambda: allowed.project(goal))
            bench.tell(f"project onto PD {threshold}, cold, times an evaluation, {case}", seconds / evaluating)
            again, _ = bench.once(lambda: allowed.project(0.98 * goal))
            bench.tell(f"project onto PD {threshold}, warm, times an evaluation, {case}", again / evaluating)
        bench.tell(f"scaled instead of projected, {case}", bound.fallbacks, f"of {4 * batch}", "0")


def _towards(anchors: AnchorSet, batch: int) -> Tensor:
    """The mean of a few anchors for each image."""
    rows = torch.arange(8 * batch, device=anchors.images.device).view(batch, 8) % len(anchors.images)
    return anchors.images[rows].float().mean(1) / 255
