"""Cost of the exact projection, as a multiple of clipping and scaling the same perturbations. One thread.

python benchmarks/bench_projection.py [word ...]     only the cases whose names hold all the words
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

sys.path.insert(0, str(Path(__file__).parents[1]))

from foundations.environment import keep_memory
from threat_specification import AnchorSet, ProjectedDisplacement

CLASSES = 10
BATCH = 128
SHAPE = (3, 32, 32)


def photographs(count: int, seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[Tensor, Tensor]:
    """Smooth 8-bit images of classes with something in common, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(CLASSES, shape[0], 6, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % CLASSES
    coarse = 0.7 * prototypes[labels] + torch.randn(count, shape[0], 6, 6, generator=generator)
    images = 0.5 + 0.2 * interpolate(coarse, size=shape[1:], mode="bicubic", align_corners=False)
    images += 0.03 * torch.randn(images.shape, generator=generator)
    return (255 * images.clamp(0, 1)).round().to(torch.uint8), labels


def bind(num_anchors: int, batch: int = BATCH, shape: tuple[int, int, int] = SHAPE):
    """A threat with anchors, bound to other images."""
    threat = ProjectedDisplacement(anchors=AnchorSet(*photographs(num_anchors, 1, shape))).prepare()
    images, labels = photographs(batch, 2, shape)
    return threat.bind(images.float() / 255, labels)


def towards(bound, anchors: Tensor, share: int, length: float, noise: float = 0.02) -> Tensor:
    """Perturbations towards the mean of a few anchors of any class, with noise."""
    generator = torch.Generator().manual_seed(3)
    picks = torch.randint(0, len(anchors), (len(bound.examples), share), generator=generator)
    goal = anchors[picks].mean(1) - bound.examples
    return length * goal + noise * torch.randn(goal.shape, generator=generator)


def median_seconds(run: Callable[[], object], repeats: int = 5) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def cold(bound, delta: Tensor, threshold: float, lower: Tensor, upper: Tensor) -> Callable[[], Tensor]:
    """A projection that remembers nothing of the one before."""

    def run() -> Tensor:
        bound.warm = None
        return bound.nearest(delta, threshold, lower, upper)

    return run


def wide(examples: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full_like(examples, -1e6), torch.full_like(examples, 1e6)


def within(examples: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    return (-examples).clamp_min(-radius), (1 - examples).clamp_max(radius)


def ratio(bound, delta: Tensor, threshold: float, lower: Tensor, upper: Tensor) -> tuple[float, str]:
    """Time over that of scaling, and the number of anchors that bind: median and maximum."""
    scaling = median_seconds(lambda: bound.scale(delta, threshold, lower, upper))
    exact = median_seconds(cold(bound, delta, threshold, lower, upper))
    return exact / scaling, active(bound)


def active(bound) -> str:
    count = (bound.warm.multipliers > 0).sum(1)
    return f"{int(count.median())} to {int(count.max())} bind, fallbacks {getattr(bound, 'fallbacks', 0)}"


def inside_attack(bound, threshold: float, radius: float, steps: int = 20) -> tuple[float, str]:
    """Sign steps along slowly turning directions, projected after each, against scaling after each."""
    lower, upper = within(bound.examples, radius)

    def attack(project: Callable[[Tensor], Tensor]) -> float:
        generator = torch.Generator().manual_seed(4)
        direction = torch.randn(bound.examples.shape, generator=generator)
        delta, spent = torch.zeros_like(direction), 0.0
        for _ in range(steps):
            direction = direction + 0.3 * torch.randn(direction.shape, generator=generator)
            moved = delta + radius / 4 * direction.sign()
            start = time.perf_counter()
            delta = project(moved)
            spent += time.perf_counter() - start
        return spent

    bound.warm = None
    scaling = min(attack(lambda delta: bound.scale(delta, threshold, lower, upper)) for _ in range(3))
    exact = min(attack(lambda delta: bound.nearest(delta, threshold, lower, upper)) for _ in range(3))
    return exact / scaling, active(bound)


def cases() -> Iterator[tuple[str, Callable[[], tuple[float, str]], str, str]]:
    """Name, measurement, floor and aim."""
    for num_anchors in (500, 5000):
        bound = bind(num_anchors)
        anchors = bound.matrix.rows(torch.arange(num_anchors)).view(num_anchors, *SHAPE)
        easy, hard = towards(bound, anchors, 2, 0.6), towards(bound, anchors, 6, 1.0)
        free = wide(bound.examples)
        yield f"N={num_anchors} no bounds, typical", lambda: ratio(bound, easy, 0.3, *free), "5x", "2.5x"
        yield f"N={num_anchors} no bounds, hardest", lambda: ratio(bound, hard, 0.05, *free), "12x", "5x"
        if num_anchors > 500:
            continue
        box, tight = within(bound.examples, 1.0), within(bound.examples, 32 / 255)
        yield "N=500 box, typical", lambda: ratio(bound, easy, 0.3, *box), "20x", "8x"
        noise = 0.2 * torch.randn(easy.shape, generator=torch.Generator().manual_seed(5))
        yield "N=500 radius 32/255, noise", lambda: ratio(bound, noise, 0.05, *tight), "20x", "8x"
        yield "N=500 box, hard", lambda: ratio(bound, hard, 0.05, *box), "160x", "30x"
        yield "N=500 radius 32/255, hard", lambda: ratio(bound, hard, 0.05, *tight), "160x", "30x"
        beyond = towards(bound, anchors, 40, 2.0)
        yield "N=500 radius 32/255, about 95 bind", lambda: ratio(bound, beyond, 0.05, *tight), "-", "-"
        for radius in (16, 32):
            name = f"N=500 warm inside sign steps, radius {radius}/255"
            yield name, partial(inside_attack, bound, 0.05, radius / 255), "40x", "10x"


def rows(*words: str) -> list[tuple[str, float, str, str]]:
    """Case, ratio, floor, aim."""
    found = []
    for name, measure, floor, aim in cases():
        if all(word in name for word in words):
            value, note = measure()
            found.append((f"exact / scale: {name} ({note})", value, floor, aim))
    return found


def main() -> None:
    torch.set_num_threads(1)
    keep_memory()
    for case, value, floor, aim in rows(*sys.argv[1:]):
        print(f"{value:7.1f}x  floor {floor:>5}  aim {aim:>5}  {case}", flush=True)


if __name__ == "__main__":
    main()
