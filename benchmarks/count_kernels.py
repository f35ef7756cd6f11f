"""Operations that one projection launches on a GPU, and how often the host waits for it, counted on an emulated one.

python benchmarks/count_kernels.py [--batch 50] [--anchors 500] [--only hard] [--places 5]     prints Markdown

No GPU is needed and no time is measured; tests/emulated/cuda.py says what is counted. Images have the 1/f spectrum of
photographs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # not `from tests`: others have a package of that name

from emulated.cuda import Counts, emulated_cuda, to_cuda

from threat_specification import L2, AnchorSet, Linf, ProjectedDisplacement
from threat_specification.attacks.base import AttackSet
from threat_specification.base import BoundThreat, Threat
from threat_specification.projected_displacement.bound import BoundProjectedDisplacement

SHAPE = (3, 32, 32)
CLASSES = 10
RADIUS = 32 / 255
STEP = 8 / 255
STEPS = 6  # of an attack; its last projection is counted
MANY = 40  # anchors whose mean the hard cases move beyond
TIGHT = 1e-4  # relative distance to the threshold at which an anchor counts as binding


def fields(count: int, seed: int) -> Tensor:
    """Random fields whose amplitude falls with the frequency as in photographs, with a brightness of their own."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.fft.rfft2(torch.randn(count, *SHAPE, generator=generator))
    down, across = torch.fft.fftfreq(SHAPE[1]).view(-1, 1), torch.fft.rfftfreq(SHAPE[2])
    field = torch.fft.irfft2(noise / (0.03 + torch.hypot(down, across)), s=SHAPE[1:])
    field /= field.flatten(1).std(1).view(-1, 1, 1, 1)
    brightness = torch.randn(count, 1, 1, 1, generator=generator)
    return (0.5 + 0.22 * field + 0.1 * brightness).clamp(0, 1)


@dataclass
class Setting:
    """Anchors and other images on the device, and the direction in which attacks move."""

    anchors: Tensor
    examples: Tensor
    labels: Tensor
    course: Tensor
    threat: ProjectedDisplacement

    @classmethod
    def make(cls, batch: int, anchors: int) -> Setting:
        images = (255 * fields(anchors, 1)).to(torch.uint8)
        chosen = AnchorSet(to_cuda(images), to_cuda(torch.arange(anchors) % CLASSES))
        examples = (255 * fields(batch, 2)).round() / 255
        course = fields(batch, 3) - 0.5 + 0.3 * torch.randn(examples.shape, generator=torch.Generator().manual_seed(4))
        threat = ProjectedDisplacement(anchors=chosen).prepare()
        return cls(images / 255, to_cuda(examples), to_cuda(torch.arange(batch) % CLASSES), to_cuda(course), threat)


# A perturbation to project: from the setting, the last projected point, and the number of the projection.
Move = Callable[[Setting, Tensor, int], Tensor]


def step(setting: Setting, point: Tensor, number: int) -> Tensor:
    """A step of signs along the course, as an attack takes it."""
    noise = torch.randn(point.shape, generator=torch.Generator().manual_seed(10 + number))
    return point + STEP * (setting.course + 0.5 * to_cuda(noise)).sign()


def far(setting: Setting, point: Tensor, number: int) -> Tensor:
    """A point beyond the mean of many anchors, where many bind at once."""
    noise = torch.randn(point.shape, generator=torch.Generator().manual_seed(20 + number))
    return 3 * (to_cuda(setting.anchors[:MANY].mean(0)) - setting.examples) + 0.01 * to_cuda(noise)


@dataclass
class Case:
    """A projection onto {threat <= threshold}, a radius and the pixel box; the last of `moves` is counted."""

    name: str
    threshold: float
    radius: float
    moves: tuple[Move, ...]
    threat: Threat | None = None  # None: the anchors' PD


# Case -> what is aimed at: kernels and waits.
AIMS = {
    "l2, 0.5": ("80", "1"),
    "PD 0.1, radius 32/255, first step": ("25", "1"),
    "PD 0.1, radius 32/255, warm": ("2500", "6"),
    "PD 0.01, radius 32/255, warm": ("2500", "6"),
    "PD 0.001, radius 32/255, warm": ("2500", "6"),
    "hard, cold": ("5000", "30"),
    "hard, warm": ("1500", "10"),
}
BATCH = 50  # of `rows`; more take minutes

CASES = [
    Case("l-inf, 8/255", 8 / 255, math.inf, (step, step), Linf()),
    Case("l2, 0.5", 0.5, math.inf, (step, step), L2()),
    Case("PD 0.1, radius 32/255, first step", 0.1, RADIUS, (step,)),
    Case("PD 0.1, radius 32/255, warm", 0.1, RADIUS, (step,) * STEPS),
    Case("PD 0.01, radius 32/255, warm", 0.01, RADIUS, (step,) * STEPS),
    Case("PD 0.001, radius 32/255, warm", 0.001, RADIUS, (step,) * STEPS),
    Case("PD 0.02, pixel box, warm", 0.02, math.inf, (step,) * STEPS),
    Case("hard, cold", 0.02, RADIUS, (far,)),
    Case("hard, warm", 0.02, RADIUS, (far, far)),
]


def count(case: Case, setting: Setting, counts: Counts, places: Counter[str]) -> list[str]:
    """A row of the table; adds the places where the host waits to `places`."""
    bound = (case.threat or setting.threat).bind(setting.examples, setting.labels)
    allowed = AttackSet.within(bound, case.threshold, case.radius)
    point = torch.zeros_like(setting.examples)
    for number, move in enumerate(case.moves):
        moved = move(setting, point, number)
        counts.reset()
        point = allowed.project(moved)
    found = [f"{counts.launched:,}", f"{counts.waited:,}"]
    places.update(counts.places)
    return [case.name, *found, *_binding(bound, point, case.threshold)]


def _binding(bound: BoundThreat, point: Tensor, threshold: float) -> list[str]:
    """The share of examples with a binding anchor, the largest number of them, and how many points were scaled."""
    if not isinstance(bound, BoundProjectedDisplacement):
        return ["", "", ""]
    tight = (bound.displacements(point.flatten(1)) > threshold * (1 - TIGHT)).sum(1)
    return [f"{float((tight > 0).float().mean()):.0%}", str(int(tight.max())), str(bound.fallbacks)]


def rows() -> list[tuple[str, float, str, str]]:
    """(case, number, floor, aim) of every case, for python -m benchmarks; these are counts, not times."""
    made: list[tuple[str, float, str, str]] = []
    with emulated_cuda() as counts:
        setting = Setting.make(BATCH, 500)
        setting.threat.bind(setting.examples, setting.labels).project(setting.course, 0.01)  # what anchors cache
        for case in CASES:
            launched, waited = (int(number.replace(",", "")) for number in count(case, setting, counts, Counter())[1:3])
            kernels, waits = AIMS.get(case.name, ("-", "-"))
            name = f"{case.name}: B={BATCH}, N=500, 3x32x32"
            made += [(f"kernels, {name}", launched, "-", kernels), (f"waits, {name}", waited, "-", waits)]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Kernels and waits of projections, on an emulated GPU.")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--anchors", type=int, default=500)
    parser.add_argument("--only", default="", help="cases whose names hold this word")
    parser.add_argument("--places", type=int, default=0, help="how many lines where the host waits most to print")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with emulated_cuda() as counts:
        setting = Setting.make(arguments.batch, arguments.anchors)
        setting.threat.bind(setting.examples, setting.labels).project(setting.course, 0.01)  # what anchors cache
        print(f"B={arguments.batch}, N={arguments.anchors}, {'x'.join(map(str, SHAPE))}, one projection\n")
        print("| case | kernels | waits | examples that bind | most binding anchors | scaled |")
        print("|---|---|---|---|---|---|", flush=True)
        places: Counter[str] = Counter()
        for case in CASES:
            if arguments.only in case.name:
                print("|", " | ".join(count(case, setting, counts, places)), "|", flush=True)
        if arguments.places:
            print("\n| where the host waits | times |\n|---|---|")
            print("\n".join(f"| {place} | {times:,} |" for place, times in places.most_common(arguments.places)))


if __name__ == "__main__":
    main()
