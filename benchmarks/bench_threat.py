"""Cost and accuracy of the Projected Displacement threat, against `torch.mm` and against building every difference.

    OMP_NUM_THREADS=1 python benchmarks/bench_threat.py

One thread; what is compared runs in turns within one process, and the medians of their times are divided.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from threat_specification import AnchorSet, ProjectedDisplacement

ROUNDS = 5
CLASSES = 10
DIFFERENCES = 1 << 26  # numbers in one chunk of differences when it is timed: 256 MiB; when memory is measured, all

Row = tuple[str, float, str, str]


def problem(batch: int, pixels: int, count: int) -> tuple[AnchorSet, Tensor, Tensor, Tensor]:
    """8-bit anchors, examples, labels, perturbations the size of noise plus a step towards another class."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 1, pixels), dtype=torch.uint8, generator=generator)
    anchors = AnchorSet(images, torch.arange(count) % CLASSES)
    x = torch.rand(batch, 1, 1, pixels, generator=generator)
    y = torch.arange(batch) % CLASSES
    d = 0.1 * torch.randn(x.shape, generator=generator) + 0.05 * (anchors.floats()[(y + 1) % count].view_as(x) - x)
    return anchors, x, y, d


def by_differences(anchors: Tensor, anchor_labels: Tensor, x: Tensor, y: Tensor, d: Tensor, chunk_size: int) -> Tensor:
    """PD written plainly: every a_j - x is built, chunk by chunk of the anchors. All flat, float32."""
    threats = []
    for start in range(0, len(anchors), chunk_size):
        chunk, labels = anchors[start : start + chunk_size], anchor_labels[start : start + chunk_size]
        differences = chunk.unsqueeze(0) - x.unsqueeze(1)
        directions = differences / (0.5 * differences.square().sum(2, keepdim=True))
        along = (directions * d.unsqueeze(1)).sum(2)
        along[y.unsqueeze(1) == labels.unsqueeze(0)] = 0
        threats.append(along.amax(1))
    return torch.stack(threats).amax(0).clamp_min(0)


def medians(calls: list[Callable[[], object]], rounds: int = ROUNDS) -> list[float]:
    """Seconds each call takes, by turns, after one turn to warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in times]


def against_mm(batch: int, pixels: int, count: int) -> list[Row]:
    """(a) an evaluation of the bound threat as a fraction of torch.mm, higher is better."""
    anchors, x, y, d = problem(batch, pixels, count)
    bound = ProjectedDisplacement(anchors=anchors).bind(x, y)
    matrix, flat = anchors.floats(), d.flatten(1)
    repeats = max(1, 2_000_000_000 // (batch * pixels * count))
    mm, ours = medians(
        [
            lambda: [torch.mm(flat, matrix.T) for _ in range(repeats)],
            lambda: [bound.evaluate(d) for _ in range(repeats)],
        ]
    )
    shape = f"B={batch} D={pixels} N={count}"
    return [(f"bound threat, fraction of torch.mm, {shape}", mm / ours, "0.80", "1.0")]


def against_differences(batch: int, pixels: int, count: int) -> list[Row]:
    """(b) bind and evaluate, how many times as fast as building the differences."""
    anchors, x, y, d = problem(batch, pixels, count)
    threat = ProjectedDisplacement(anchors=anchors).prepare()
    bound = threat.bind(x, y)
    matrix, chunk_size = anchors.floats(), max(1, DIFFERENCES // (batch * pixels))
    plain, both, cached = medians(
        [
            lambda: by_differences(matrix, anchors.labels, x.flatten(1), y, d.flatten(1), chunk_size),
            lambda: threat.bind(x, y).evaluate(d),
            lambda: bound.evaluate(d),
        ]
    )
    shape = f"B={batch} D={pixels} N={count}"
    return [
        (f"bind + threat, times as fast as differences, {shape}", plain / both, "20", "80"),
        (f"threat already bound, times as fast as differences, {shape}", plain / cached, "-", "-"),
    ]


def peak_bytes(call: Callable[[], object]) -> int:
    """Most memory that a call holds at once in tensors it makes, as the profiler saw them come and go."""
    call()  # buffers that are kept belong to what was there before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    assert seen.profiler is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def memory(batch: int, pixels: int, count: int) -> list[Row]:
    """(c) how many times the peak memory of evaluating that of the differences is."""
    anchors, x, y, d = problem(batch, pixels, count)
    threat = ProjectedDisplacement(anchors=anchors).prepare()
    matrix, z = anchors.floats(), x + d
    bound = threat.bind(x, y)
    whole = peak_bytes(lambda: threat.evaluate(x, y, z))
    cached = peak_bytes(lambda: bound.evaluate(d))
    plain = peak_bytes(lambda: by_differences(matrix, anchors.labels, x.flatten(1), y, d.flatten(1), count))
    shape = f"B={batch} D={pixels} N={count}"
    return [
        (f"peak memory of differences, times that of evaluate, {shape}", plain / whole, "20", "100"),
        (f"peak memory of differences, times that of the bound threat, {shape}", plain / cached, "-", "-"),
    ]


def by_loops(anchors: AnchorSet, x: Tensor, y: Tensor, d: Tensor) -> Tensor:
    """PD in float64, one example at a time."""
    matrix, threats = anchors.floats().double(), []
    for image, label, step in zip(x.double().flatten(1), y, d.double().flatten(1), strict=True):
        differences = matrix[anchors.labels != label] - image
        threats.append((differences @ step / (0.5 * differences.square().sum(1))).amax().clamp_min(0))
    return torch.stack(threats)


def errors(batch: int, pixels: int, count: int) -> list[Row]:
    """(d) largest relative error against float64; with an anchor of another class at distance 0.01 too."""
    anchors, x, y, d = problem(batch, pixels, count)
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    near = (x + 0.01 * step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    with_near = AnchorSet(
        torch.cat([anchors.floats().view(-1, 1, 1, pixels), near]), torch.cat([anchors.labels, (y + 1) % CLASSES])
    )
    shape = f"B={batch} D={pixels} N={count}"
    rows = []
    for title, chosen, delta in (
        (f"relative error, {shape}", anchors, d),
        (f"relative error, an anchor at 0.01, step of noise, {shape}", with_near, d),
        (f"relative error, an anchor at 0.01, half-way to it, {shape}", with_near, 0.5 * (near - x)),
    ):
        got = ProjectedDisplacement(anchors=chosen).bind(x, y).evaluate(delta)
        expected = by_loops(chosen, x, y, delta)
        rows.append((title, float(((got - expected) / expected).abs().max()), "1e-5", "1e-6"))
    return rows


def rows() -> list[Row]:
    """(what, ratio, floor, aim) of everything; errors are better when small, all else when large."""
    return list(measure())


def measure() -> Iterator[Row]:
    """The rows as they come."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for batch, pixels, count in ((128, 3072, 500), (128, 3072, 5000), (16, 150_528, 2000)):
            yield from against_mm(batch, pixels, count)
        for batch, pixels, count in ((128, 3072, 500), (128, 3072, 5000), (16, 150_528, 500)):
            yield from against_differences(batch, pixels, count)
        for batch, pixels, count in ((128, 3072, 500), (16, 3072, 5000), (4, 150_528, 200)):
            yield from memory(batch, pixels, count)
        for batch, pixels, count in ((128, 3072, 500), (16, 150_528, 200)):
            yield from errors(batch, pixels, count)
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    """Print the table."""
    print(f"{'what':86} {'measured':>10} {'floor':>6} {'aim':>6}")
    for title, value, floor, aim in measure():
        print(f"{title:86} {value:10.3g} {floor:>6} {aim:>6}", flush=True)


if __name__ == "__main__":
    main()
