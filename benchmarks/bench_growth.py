"""Growth of time and memory: examples, anchors, classes and pixels, by 2, 4 and 8, on synthetic images. One thread.

python benchmarks/bench_growth.py [word ...]     only the cases whose names hold all the words

A case is timed in a process of its own, forked from one that has done nothing but import: its peak memory is its own.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from foundations.environment import keep_memory
from foundations.results import markdown_table
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.base import BoundThreat
from threat_specification.projected_displacement.anchor_selection import select_class
from threat_specification.projected_displacement.selection_space import RAW

FACTORS = (1, 2, 4, 8)
PIXELS = 3072  # at factor 1
BATCH = 128  # examples held at once, as a runner's shards
REPEATS = 5


@dataclass(frozen=True)
class Sizes:
    """Of one case."""

    examples: int = 512
    anchors: int = 500
    classes: int = 10
    pixels: int = PIXELS


Work = Callable[[Sizes], Callable[[], None]]  # prepares, and returns what is timed


def _larger(images: Tensor, pixels: int) -> Tensor:
    """The same pictures with every pixel several times: threats, and which anchors bind, stay what they are."""
    return images.repeat(1, 1, 1, pixels // images.shape[3])


def _images(count: int, pixels: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return _larger(torch.randint(0, 256, (count, 1, 1, PIXELS), generator=generator, dtype=torch.uint8), pixels)


def _threat(sizes: Sizes) -> tuple[ProjectedDisplacement, Tensor, Tensor]:
    labels = torch.arange(sizes.anchors) % sizes.classes
    threat = ProjectedDisplacement(anchors=AnchorSet(_images(sizes.anchors, sizes.pixels, 1), labels)).prepare()
    return threat, _images(sizes.examples, sizes.pixels, 2), torch.arange(sizes.examples) % sizes.classes


def _in_batches(sizes: Sizes, once: Callable[[BoundThreat, Tensor], object]) -> Callable[[], None]:
    threat, images, labels = _threat(sizes)
    noise = 0.1 * torch.randn(BATCH, 1, 1, PIXELS, generator=torch.Generator().manual_seed(3))
    delta = _larger(noise, sizes.pixels)

    def work() -> None:
        for start in range(0, sizes.examples, BATCH):
            rows = slice(start, start + BATCH)
            x = images[rows].float() / 255
            once(threat.bind(x, labels[rows]), delta[: len(x)])

    return work


def evaluate(sizes: Sizes) -> Callable[[], None]:
    """bind and evaluate, all examples in batches."""
    return _in_batches(sizes, lambda bound, delta: bound.evaluate(delta))


def project(sizes: Sizes) -> Callable[[], None]:
    """bind and the exact projection with the pixel box; few anchors bind."""
    return _in_batches(sizes, lambda bound, delta: bound.project(delta, 0.01))


def choose(sizes: Sizes) -> Callable[[], None]:
    """Greedy selection of the anchors of one class, from `examples` images."""
    images = _images(sizes.examples, sizes.pixels, 1)
    rows = torch.arange(len(images))

    def work() -> None:
        select_class(lambda index: images[index], RAW, rows, 0, "greedy_subsets", 50, 10**6, 0)

    return work


CASES: dict[str, tuple[Work, Sizes, tuple[str, ...]]] = {
    "evaluate": (evaluate, Sizes(), ("examples", "anchors", "classes", "pixels")),
    "exact projection": (project, Sizes(), ("examples", "anchors", "classes", "pixels")),
    "choosing anchors of a class": (choose, Sizes(examples=1000), ("examples", "pixels")),
}


def _measure(work: Work, sizes: Sizes, answer: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    keep_memory()
    run = work(sizes)
    run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    answer.send((statistics.median(times), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def measured(work: Work, sizes: Sizes) -> tuple[float, float]:
    """Seconds, and the peak of a process that does nothing else, in MiB."""
    here, there = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.bench_growth"])
    process = context.Process(target=_measure, args=(work, sizes, there))
    process.start()
    there.close()  # the child's end is the only one: without its answer this ends too
    seconds, peak = here.recv()
    process.join()
    return seconds, peak


def exponent(values: list[float]) -> float:
    """Least squares slope of log(value) over log(factor)."""
    x, y = [math.log(factor) for factor in FACTORS], [math.log(value) for value in values]
    middle = statistics.mean(x), statistics.mean(y)
    over = sum((a - middle[0]) * (b - middle[1]) for a, b in zip(x, y, strict=True))
    return over / sum((a - middle[0]) ** 2 for a in x)


def growths(*words: str) -> Iterator[tuple[str, list[float], list[float]]]:
    """Case, seconds and MiB at each factor."""
    for name, (work, sizes, dimensions) in CASES.items():
        for dimension in dimensions:
            case = f"{name}, {dimension} from {getattr(sizes, dimension)}"
            if all(word in case for word in words):
                found = [measured(work, replace(sizes, **{dimension: f * getattr(sizes, dimension)})) for f in FACTORS]
                yield case, [seconds for seconds, _ in found], [peak for _, peak in found]


def rows(*words: str) -> list[tuple[str, float, str, str]]:
    """Case with its figures, exponent of time, floor, aim."""
    made = []
    for case, seconds, peaks in growths(*words):
        told = "; ".join(f"{1e3 * s:.0f} ms, {peak:.0f} MiB" for s, peak in zip(seconds, peaks, strict=True))
        made.append((f"exponent of time: {case} by 1, 2, 4, 8 ({told})", exponent(seconds), "1.05", "1"))
    return made


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_memory()
    table = [[case, f"{value:.2f}", floor] for case, value, floor, _ in rows(*sys.argv[1:])]
    print(markdown_table(["case", "exponent", "at most"], table))
