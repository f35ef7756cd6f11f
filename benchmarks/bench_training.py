"""Cost of a step of training: adversaries side by side, against a bare loop; the loader against torchvision's."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bench_attacks import COLOUR
from benchmarks.bench_projection import photographs
from datasets.base import Split
from datasets.loader import ShuffledBatches
from models.registry import build_model
from threat_specification import AnchorSet, Linf, ProjectedDisplacement
from training.adversaries import PGD
from training.augmentation import Movements, RandomCrop, RandomFlip
from training.batch import Batch
from training.loop import Trainer
from training.network import MixedPrecision
from training.objectives import Parts, standard
from training.schedule import Schedule

BATCH, ITERATIONS, RUNS = 64, 10, 5
LR = 1e-3


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet_20", COLOUR)


def split(count: int = 4 * BATCH) -> Split:
    images, labels = photographs(count, 2)
    return Split(images, labels)


def trainer(data: Split, objective: Parts, steps: int) -> Trainer:
    model = MixedPrecision(network())
    schedule = Schedule(steps, 0, (), 0.1, "constant")
    optimizer = torch.optim.SGD(model.parameters(), LR, 0.9)
    return Trainer(model, optimizer, ShuffledBatches(data, BATCH, 0), objective, schedule, LR)


def steps_of(data: Split, objective: Parts) -> Callable[[], None]:
    """A function that goes on training by two steps."""
    made = trainer(data, objective, 10**9)
    total = [0]

    def two() -> None:
        total[0] += 2
        made.schedule = Schedule(total[0], 0, (), 0.1, "constant")
        made.run()

    return two


def bare_steps(data: Split) -> Callable[[], None]:
    """The same over the same tensors, in bare PyTorch."""
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), LR, 0.9)
    images, labels = data.images, data.labels
    order = [0]

    def two() -> None:
        for _ in range(2):
            start = order[0] * BATCH % len(labels)
            rows = slice(start, start + BATCH)
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(images[rows].float() / 255), labels[rows]).backward()
            optimizer.step()
            order[0] += 1

    return two


def ratio(ours: Callable[[], object], other: Callable[[], object]) -> float:
    """Median of our time over the other's, in turns; the first round does not count."""
    times: list[list[float]] = [[], []]
    for _ in range(RUNS + 1):
        for place, run in enumerate((ours, other)):
            start = time.perf_counter()
            run()
            times[place].append(time.perf_counter() - start)
    return statistics.median(a / b for a, b in zip(times[0][1:], times[1][1:], strict=True))


def our_epoch(data: Split) -> Callable[[], None]:
    move = Movements([RandomCrop(4, 1), RandomFlip(2)])
    batches = ShuffledBatches(data, 128, 0)

    def epoch() -> None:
        for number, source in enumerate(batches.epoch(0)):
            _ = Batch(source, move=move, draw=number).images

    return epoch


def their_epoch(data: Split) -> Callable[[], None]:
    """Crop and flip by torchvision on PIL images, in a DataLoader in this process."""
    from PIL import Image
    from torchvision import transforms

    change = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in data.images]

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            return change(pictures[row]), int(data.labels[row])

    loader = torch.utils.data.DataLoader(Pictures(), 128, shuffle=True, drop_last=True)

    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def rows() -> list[tuple[str, float, str, str]]:
    """(case, ratio, floor, aim)."""
    data = split()
    linf = PGD("adv", Linf(), 8 / 255, 8 / 255, 8 / 255, ITERATIONS, 0)
    adversarial = steps_of(data, Parts(adversaries=[linf]))
    made = []
    for threshold, radius in ((0.1, 32 / 255), (0.1, 8 / 255), (0.001, 32 / 255)):
        threat = ProjectedDisplacement(anchors=AnchorSet(*photographs(500, 1))).prepare()
        inside = PGD("N_adv", threat, threshold, radius, radius, ITERATIONS, 0, momentum=0.75)
        name = f"N_adv_train step (PD {threshold}, radius {round(radius * 255)}/255) / adv_train step"
        made.append((name, ratio(steps_of(data, Parts(adversaries=[inside])), adversarial), "1.4", "1.15"))
    cost = f"ResNet-20, 3x32x32, N=500, B={BATCH}, {ITERATIONS} iterations"
    many = split(1280)
    return [
        *((f"{name}: {cost}", value, floor, aim) for name, value, floor, aim in made),
        (
            f"standard step / bare PyTorch over the same tensors: ResNet-20, B={BATCH}",
            ratio(steps_of(data, standard), bare_steps(data)),
            "1.05",
            "-",
        ),
        (
            "loader with crop and flip, times as fast as torchvision + DataLoader: 3x32x32, B=128",
            ratio(their_epoch(many), our_epoch(many)),
            "5",
            "-",
        ),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in rows():
        print(row, flush=True)
