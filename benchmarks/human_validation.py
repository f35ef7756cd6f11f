"""A task that mimics invariance attacks without asking people: changes inside l-inf or in few pixels, and a judge.

Training images are divided into four parts that share nothing: `bank` (all that a measure may learn from), `judge` (it
trains the judges), `sources` (images that are changed) and `targets` (images of other classes that they are led to).
A change leads a source towards its nearest targets, turned and shifted to fit, and is clipped to the size of the group:
the way of Tramer et al. (2020). Two networks, trained on other images to see faint strokes, say what they see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
import torch.nn.functional as F
from scipy.ndimage import label as components
from torch import Tensor, nn

PARTS = {"bank": 2000, "judge": 1000, "sources": 300, "targets": 700}
GROUPS = ("l-inf 0.3", "l-inf 0.4", "l0")
GAIN = 3.0  # of a change before it is clipped: most changed pixels change by all that is allowed
FITS = 5  # nearest targets of a class that are turned and shifted
TURNS, SHIFTS = (-12, 0, 12), (-2, 0, 2)
SURE = 0.6  # least probability that a judge gives its digit; other changes are left out, as people would disagree


@dataclass(frozen=True)
class Pairs:
    """Images before and after changes of equal size, and whether another digit is seen.

    clean [n,784], label [n], changed [n,m,784], seen [n,m]: 1 another digit, 0 the same, NaN not known
    """

    clean: Tensor
    label: Tensor
    changed: Tensor
    seen: numpy.ndarray


def split(images: Tensor, labels: Tensor, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The four parts, each with all classes in equal shares."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([(labels == c).nonzero().flatten()[torch.randperm(400, generator=generator)] for c in range(10)])
    parts, start = {}, 0
    for name, size in PARTS.items():
        chosen = rows[:, start : start + size // 10].flatten()
        parts[name] = (images[chosen], labels[chosen])
        start += size // 10
    return parts


def network(width: int = 16) -> nn.Sequential:
    """A small convolutional network on [n,784]."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(nn.Conv2d(1, width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(36 * width, 10)),
    )


def varied(x: Tensor, generator: torch.Generator) -> Tensor:
    """Training images [n,784] as people would still know them: moved, with other gamma, contrast and noise."""
    n = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    angle, size = uniform(-0.25, 0.25), uniform(0.85, 1.15)
    cos, sin = angle.cos() * size, angle.sin() * size
    matrix = torch.stack([cos, -sin + uniform(-0.15, 0.15), sin, cos], 1).view(n, 2, 2)
    moved = F.affine_grid(torch.cat([matrix, uniform(-0.14, 0.14, 2, 1)], 2), [n, 1, 28, 28], align_corners=False)
    x = F.grid_sample(x.view(n, 1, 28, 28), moved, align_corners=False).flatten(1).clamp(0, 1)
    x = x ** torch.exp(uniform(-1.2, 0.5, 1))
    x = uniform(0, 0.2, 1) + uniform(0.35, 0.8, 1) * x
    return x + uniform(0, 0.12, 1) * torch.randn(x.shape, generator=generator)


def train_judge(x: Tensor, y: Tensor, seed: int, epochs: int = 60) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = network()
    steps = epochs * (len(x) // 50)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (50,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(net(varied(x[rows], generator)), y[rows]).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def verdicts(judges: list[nn.Module], label: Tensor, images: Tensor) -> numpy.ndarray:
    """[n]: 1 where every judge is sure of one other digit, 0 where every judge is sure of the label, else NaN."""
    chances = torch.stack([judge(images).softmax(1) for judge in judges])
    sure, digit = chances.max(2)
    agreed = (sure >= SURE).all(0) & (digit == digit[0]).all(0)
    return torch.where(agreed, (digit[0] != label).float(), torch.nan).numpy()


def fitted(x: Tensor, targets: Tensor) -> Tensor:
    """The target [784] among all turned and shifted ones that is nearest to x."""
    near = targets[(targets - x).norm(dim=1).topk(FITS, largest=False).indices].view(-1, 1, 28, 28)
    made = []
    for turn in TURNS:
        angle = torch.tensor(turn * torch.pi / 180)
        for down in SHIFTS:
            for right in SHIFTS:
                rows = [[angle.cos(), -angle.sin(), right / 14], [angle.sin(), angle.cos(), down / 14]]
                grid = F.affine_grid(
                    torch.tensor([rows]).expand(len(near), 2, 3), list(near.shape), align_corners=False
                )
                made.append(F.grid_sample(near, grid, align_corners=False).flatten(1))
    candidates = torch.cat(made)
    return candidates[(candidates - x).norm(dim=1).argmin()]


def changes(x: Tensor, target: Tensor, random: numpy.random.Generator) -> list[Tensor]:
    """x changed towards the target, [784] for each group; some of the places that differ are left as they are."""
    whole = (target - x).view(28, 28)
    places, number = components((whole.abs() > 0.3).numpy(), numpy.ones((3, 3)))
    sizes = numpy.bincount(places.ravel(), minlength=number + 1)[1:]
    kept = 1 + numpy.argsort(-sizes)[: random.integers(1, 4)]
    few = torch.from_numpy(numpy.isin(places, kept))
    part = whole if random.random() < 0.5 else whole * F.max_pool2d(few.float()[None, None], 3, 1, 1)[0, 0]
    made = [(GAIN * part).clamp(-size, size) for size in (0.3, 0.4)] + [whole * few]
    return [(x + delta.flatten()).clamp(0, 1) for delta in made]


def make(parts: dict[str, tuple[Tensor, Tensor]], seed: int) -> tuple[dict[str, Pairs], list[nn.Module]]:
    """Pairs of every group, and the judges."""
    judges = [train_judge(*parts["judge"], seed + number) for number in (1, 2)]
    random = numpy.random.default_rng(seed)
    (clean, label), (targets, classes) = parts["sources"], parts["targets"]
    known = verdicts(judges, label, clean) == 0
    clean, label = clean[known], label[known]
    made = []
    for x, y in zip(clean, label, strict=True):
        fits = torch.stack([fitted(x, targets[classes == c]) for c in range(10) if c != y])
        order = (fits - x).norm(dim=1).argsort()
        made.append([changes(x, fits[place], random) for place in (order[0], order[1], order[random.integers(2, 9)])])
    pairs = {}
    for place, group in enumerate(GROUPS):
        changed = torch.stack([torch.stack([three[place] for three in each]) for each in made])
        seen = verdicts(judges, label.repeat_interleave(3), changed.flatten(0, 1)).reshape(-1, 3)
        pairs[group] = Pairs(clean, label, changed, seen)
    return pairs, judges
