"""Cost of the tangent form, as a multiple of the plain form's.

    OMP_NUM_THREADS=1 python benchmarks/bench_tangents.py

One thread; what is compared runs in turns within one process. Digits with 500 anchors; colour images are smooth random
fields. Both forms at the same threshold: how many anchors bind differs a little, and is given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.bench_threat import Row, medians
from datasets.registry import load_dataset
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.projected_displacement.bound import BoundProjectedDisplacement

BATCH, ANCHORS, CLASSES, STEPS = 250, 500, 10, 5
Images = tuple[Tensor, Tensor]


def digits() -> tuple[Images, Images]:
    """Anchors, 50 of each class, and test images, with their labels."""
    data = load_dataset("mnist_5k")
    labels = data.train.labels
    rows = torch.cat([(labels == label).nonzero().flatten()[: ANCHORS // CLASSES] for label in range(CLASSES)])
    every = torch.arange(BATCH)
    return (data.train.pixels(rows), labels[rows]), (data.test.pixels(every), data.test.labels[every])


def fields() -> tuple[Images, Images]:
    """The same of smooth colour images."""
    coarse = torch.rand(ANCHORS + BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1)
    labels = torch.arange(len(images)) % CLASSES
    return (images[:ANCHORS], labels[:ANCHORS]), (images[ANCHORS:], labels[ANCHORS:])


def repeated(work: Callable[[Tensor], object], value: Tensor, times: int = 20) -> None:
    for _ in range(times):
        work(value)


def cost(name: str, anchors: Images, examples: Images, radius: float, threshold: float) -> list[Row]:
    """Bind, evaluate, and a few projected steps of an attack."""
    threats = [ProjectedDisplacement(anchors=AnchorSet(*anchors), tangents=form).prepare() for form in (False, True)]
    bounds = [threat.bind(*examples) for threat in threats]
    x = examples[0]
    d = radius * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).sign()
    lower, upper = (-x).clamp_min(-radius), (1 - x).clamp_max(radius)

    def steps(bound: BoundProjectedDisplacement) -> None:
        bound.warm, p = None, torch.zeros_like(x)
        for step in range(STEPS):
            p = bound.nearest(p + d.roll(step, 3), threshold, lower, upper)

    found: list[Row] = []
    work: list[tuple[str, list[Callable[[], object]], str]] = [
        ("bind", [partial(threat.bind, *examples) for threat in threats], "-"),
        ("evaluate", [partial(repeated, bound.evaluate, d) for bound in bounds], "1.1"),
        (f"{STEPS} projected steps", [partial(steps, bound) for bound in bounds], "1.3"),
    ]
    for title, calls, aim in work:
        plain, tangent = medians(calls)
        found.append((f"{title}, {name}", tangent / plain, "-", aim))
    binding = [float((bound.warm.multipliers > 0).sum(1).float().mean()) for bound in bounds if bound.warm]
    last, ratio, floor, aim = found.pop()
    note = f"threshold {threshold}, radius {radius:.3g}; {binding[0]:.1f} and {binding[1]:.1f} bind"
    return [*found, (f"{last} ({note})", ratio, floor, aim)]


def rows() -> list[Row]:
    return [
        *cost("1x28x28, N=500", *digits(), 0.3, 0.05),
        *cost("3x32x32, N=500", *fields(), 32 / 255, 0.05),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, value, floor, aim in rows():
        print(f"{name}: {value:.2f} (floor {floor}, aim {aim})")
