"""Cost of adversaries that mix safe changes, as a multiple of one in an l-inf ball; and of their parts.

    OMP_NUM_THREADS=1 python benchmarks/bench_safe_moves.py

One thread; what is compared runs in turns within one process. A step is that of training: three steps of an adversary
and one pass forwards and backwards, for a batch of 64, with the nine changes of the suite quick at severity 3, new at
every step. Networks are trained for no step: the work does not depend on the weights.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.bench_qp import constraints
from benchmarks.bench_tangents import Images, digits, fields
from benchmarks.bench_threat import Row, medians
from datasets.info import DatasetInfo
from datasets.registry import dataset_info, load_dataset
from foundations.step import Step
from models.registry import build_model
from testing.shards import Shard
from threat_specification import AnchorSet, Linf, ProjectedDisplacement
from threat_specification.safe_moves.changes import changed, parse
from threat_specification.safe_moves.mixtures import MixtureSet, SafeMoves
from training.adversaries import PGD
from training.batch import Batch

BATCH, STEPS = 64, 3
CHANGES = parse("quick:3")


def cost(name: str, model_name: str, info: DatasetInfo, data: tuple[Images, Images], radius: float) -> list[Row]:
    """Steps of training in the ball, and in the set with a threshold that seldom binds and with one that often does."""
    anchors, (images, labels) = data
    images, labels, index = images[:BATCH], labels[:BATCH], torch.arange(BATCH)
    model = build_model(model_name, info).train()
    threat = ProjectedDisplacement(anchors=AnchorSet(*anchors)).prepare()
    batch = Batch(Shard(0, images, labels, index))  # type: ignore[arg-type]
    make = lambda x, rows, seed: changed(x, rows, seed, CHANGES)  # noqa: E731
    seldom, often = thresholds(threat, images, labels)
    ball = PGD("adv", Linf(), radius, radius, radius, STEPS, seed=1)
    adversaries = [ball]
    adversaries += [PGD("N_adv", threat, t, radius, radius, STEPS, 1, moves=make) for t in (math.inf, seldom, often)]
    times = medians([partial(step, model, adversary, batch) for adversary in adversaries])
    titles = ("without the threat", f"PD <= {seldom:.2g}, above 95 % of the changes", f"PD <= {often:.2g}, above half")
    aims = ("-", "1.5", "-")
    rows = [
        (f"training step, {name}, {title}", time / times[0], "-", aim)
        for title, time, aim in zip(titles, times[1:], aims, strict=True)
    ]
    (making,) = medians([lambda: make(images, index, 0)])
    return [*rows, (f"making the changes, {name}", making / times[0], "-", "-")]


def thresholds(threat: ProjectedDisplacement, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Thresholds above 95 % and above half of the changes of the images."""
    bound = threat.bind(images, labels)
    found = SafeMoves(bound, changed(images, torch.arange(len(images)), 0, CHANGES)).threats.flatten()
    return [float(found.quantile(share)) for share in (0.95, 0.5)]


def step(model: nn.Module, adversary: PGD, batch: Batch) -> None:
    """One step of training, but for that of the optimizer."""
    part = adversary(model, batch, Step(0, 0))
    functional.cross_entropy(model(part.images), part.targets).backward()


def nearness(threshold: float, radius: float) -> list[Row]:
    """The distance of a projection over that of the nearest point of the set, on 8x8 digits; ProxQP knows that point.

    The solver has noise and weights as its variables, with all bounds at once; here the noise's box is that of the
    mixture before, so that the point is not the nearest where pixels are at their ends.
    """
    data = load_dataset("digits")
    anchors = AnchorSet(data.train.pixels(torch.arange(120)), data.train.labels[:120])
    x, y, index = data.test.pixels(torch.arange(40)), data.test.labels[:40], torch.arange(40)
    bound = ProjectedDisplacement(anchors=anchors).bind(x, y)
    allowed = MixtureSet.of(SafeMoves(bound, changed(x, index, 0, CHANGES)), threshold, radius)
    target = 0.2 * torch.randn(allowed.lower.shape, generator=torch.Generator().manual_seed(0))
    target[..., -allowed.bound.moves.count :] = target[..., -allowed.bound.moves.count :].abs() * 3
    found = allowed.project(target)
    ratios = torch.tensor([_distance_ratio(allowed, target, found, i) for i in range(len(x))])
    name = f"distance of a projection over that of the nearest point, digits, PD <= {threshold}, radius {radius}"
    return [(f"{name}: median", float(ratios.median()), "-", "-"), (f"{name}: largest", float(ratios.max()), "-", "-")]


def _distance_ratio(allowed: MixtureSet, target: Tensor, found: Tensor, i: int) -> float:
    import proxsuite

    bound = allowed.bound
    x, unit = bound.examples[i].flatten().double().numpy(), float(bound.unit[i])
    change = numpy.hstack([numpy.eye(x.size), bound.moves.shifts[i].double().numpy().T / unit])
    size, count = change.shape[1], change.shape[1] - x.size
    directions = constraints(bound.moves.threat, i)
    total = numpy.concatenate([numpy.zeros(x.size), numpy.ones(count)])[None]
    every = numpy.vstack([directions @ change, change, total, numpy.eye(size)])
    low, high = (side[i].flatten().double().numpy() for side in (allowed.lower, allowed.upper))
    lower = numpy.concatenate([numpy.full(len(directions), -1e20), -x, [-1e20], low])
    upper = numpy.concatenate([numpy.full(len(directions), bound.threshold), 1 - x, [unit], high])
    wanted = target[i].flatten().double().numpy()
    solved = proxsuite.proxqp.dense.solve(
        numpy.eye(size), -wanted, None, None, every, lower, upper, eps_abs=1e-9, max_iter=10_000
    )
    return float(numpy.linalg.norm(found[i].flatten().double().numpy() - wanted) / numpy.linalg.norm(solved.x - wanted))


def rows() -> list[Row]:
    return [
        *nearness(0.15, 0.08),
        *nearness(0.5, 0.03),
        *cost("LeNet 1x28x28", "lenet", dataset_info("mnist_5k"), digits(), 0.1),
        *cost("ResNet-8 3x32x32", "resnet_8", dataset_info("cifar10"), fields(), 4 / 255),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, value, floor, aim in rows():
        print(f"{name}: {value:.2f} (floor {floor}, aim {aim})")
