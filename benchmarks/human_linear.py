"""Ideas for a threat that agrees with people that are linear in the change d: max(0, max_j <d, v_j>).

An idea gives the rows v_j [J,784] for an image x [784] and its label, so that one can project onto its sets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from torch import Tensor

from benchmarks import human_features as features
from benchmarks.human_features import seeded
from benchmarks.human_world import KernelRule, World, other_classes

BETA = 0.5  # PD's factor
LEAST = 0.05  # least cosine between a direction and the way to its target, so that no threat is without bound
Rows = Callable[[World, Tensor, int], Tensor]
Size = Callable[[Tensor, int, Tensor], Tensor]


def halfspaces(rows: Rows, world: World) -> Size:
    """A linear idea from its pieces [J,784]."""

    def size(x: Tensor, y: int, z: Tensor) -> Tensor:
        return ((z - x) @ rows(world, x, y).T).amax(1).clamp_min(0)

    return size


def towards(w: Tensor, u: Tensor) -> Tensor:
    """Directions w [J,784], scaled so that half of the way u [J,784] has size 1."""
    along = (w * u).sum(1).clamp_min(0)
    floor = LEAST * w.norm(dim=1) * u.norm(dim=1)
    return w / (BETA * torch.maximum(along, floor).clamp_min(1e-9)).unsqueeze(1)


def pd(world: World, x: Tensor, y: int) -> Tensor:
    u = world.others(y) - x
    return towards(u, u)


def with_tangents(rows: Rows, world: World, x: Tensor, y: int) -> Tensor:
    """Pieces in the metric of PD-T: nine safe directions of x are nearly free."""
    return features.freed(features.safe_directions(x), rows(world, x, y))


def pd_t(world: World, x: Tensor, y: int) -> Tensor:
    u = world.others(y) - x
    return towards(features.freed(features.safe_directions(x), u), u)


def hull(world: World, x: Tensor, y: int, k: int = 20) -> Tensor:
    """(a) Nearest point of the convex hull of the k nearest images of each other class."""
    points = []
    for c in other_classes(y):
        near = world.nearest(x, c, k)
        system = torch.cat([near.T, torch.full((1, k), 100.0)]).double().numpy()
        weights, _ = nnls(system, torch.cat([x, torch.tensor([100.0])]).double().numpy())
        points.append(torch.from_numpy(weights).float() @ near)
    u = torch.stack(points) - x
    return towards(u, u)


def aligned(near: Tensor, x: Tensor) -> Tensor:
    """Images [k,784] moved along their own small deformations as near to x as these reach."""
    basis = features.tangents(near)
    return near + (basis @ (basis.mT @ (x - near).unsqueeze(2))).squeeze(2)


def mean_differences(world: World, x: Tensor, y: int, k: int = 10) -> Tensor:
    """(b) Mean of the nearest images of another class less that of the own class, all aligned with x."""
    own = aligned(world.nearest(x, y, k), x).mean(0)
    others = torch.stack([aligned(world.nearest(x, c, k), x).mean(0) for c in other_classes(y)])
    return towards(others - own, others - x)


def aligned_anchors(world: World, x: Tensor, y: int, k: int = 10) -> Tensor:
    """(b) PD towards the k nearest images of each other class after alignment."""
    u = torch.cat([aligned(world.nearest(x, c, k), x) for c in other_classes(y)]) - x
    return towards(u, u)


def warped_anchors(world: World, x: Tensor, y: int, k: int = 5) -> Tensor:
    """PD towards near images of other classes, of which only the residue is left that small shifts do not explain."""
    near = torch.cat([world.nearest(x, c, k) for c in other_classes(y)])
    u = features.warped(x, near) - x
    return towards(u, near - x)


def local_discriminants(world: World, x: Tensor, y: int, k: int = 30, ridge: float = 3.0) -> Tensor:
    """Fisher's discriminant of the k nearest images of the own and of each other class."""
    own = world.nearest(x, y, k)
    rows, ways = [], []
    for c in other_classes(y):
        near = world.nearest(x, c, k)
        spread = torch.cat([own - own.mean(0), near - near.mean(0)])
        apart = near.mean(0) - own.mean(0)
        inner = ridge * torch.eye(len(spread)) + spread @ spread.T
        rows.append(apart - spread.T @ torch.linalg.solve(inner, spread @ apart))
        ways.append(near.mean(0) - x)
    return towards(torch.stack(rows), torch.stack(ways))


def own_against_other(world: World, x: Tensor, y: int, k: int = 10) -> Tensor:
    """(e) For each near image of another class: the way to it less the way to the nearest of the own class."""
    own = world.nearest(x, y, k)
    others = torch.cat([world.nearest(x, c, k) for c in other_classes(y)])
    partner = own[torch.cdist(others, own).argmin(1)]
    return towards(others - partner, others - x)


def robust_slopes(world: World, x: Tensor, y: int, noise: float = 0.15, draws: int = 32) -> Tensor:
    """(c) Slopes of a robust network's margins, averaged over noise around x."""
    points = x + noise * torch.randn(draws, 784, generator=seeded(world.seed))
    points.requires_grad_(True)
    logits = world.robust(points)
    rows = [torch.autograd.grad((logits[:, c] - logits[:, y]).mean(), points, retain_graph=True)[0].sum(0)
            for c in other_classes(y)]  # fmt: skip
    margins = (logits[:, [y]] - logits[:, other_classes(y)]).mean(0).detach().clamp_min(0.3)
    return torch.stack(rows) / margins.unsqueeze(1)


def morph_anchors(world: World, x: Tensor, y: int, steps: int = 12, length: float = 1.2) -> Tensor:
    """(c) PD towards the image that a robust network takes for each other class, found by descent from x."""
    targets = torch.tensor(other_classes(y))
    z = x.repeat(9, 1)
    for _ in range(steps):
        z.requires_grad_(True)
        loss = F.cross_entropy(world.robust(z), targets, reduction="sum")
        (slope,) = torch.autograd.grad(loss, z)
        z = (z.detach() - length * F.normalize(slope, dim=1)).clamp(0, 1)
    return towards(z - x, z - x)


def linear_feature(feature: features.Feature, world: World, x: Tensor, y: int) -> Tensor:
    """PD after a symmetric linear map of images: <map d, map u>."""
    u = world.others(y) - x
    return towards(feature(feature(u)), u)


def seen_ink(world: World, x: Tensor, y: int) -> Tensor:
    """PD in `bent` pixels, linear at x: a pixel counts by how much 0.3 more of it would be seen."""
    slope = (features.bent(x + 0.3) - features.bent(x)) / 0.3
    u = world.others(y) - x
    return towards(slope * slope * u, u)


def windows(world: World, x: Tensor, y: int, side: int = 9, step: int = 3) -> Tensor:
    """PD towards each near image of another class in each window alone, if much differs there."""
    u = torch.cat([world.nearest(x, c, 3) for c in other_classes(y)]) - x
    ones = F.unfold(torch.eye(784).view(784, 1, 28, 28), side, stride=step).sum(1).T > 0  # [W,784]
    inside = (u.unsqueeze(1) * ones).flatten(0, 1)
    floor = torch.maximum((u * u) @ ones.T.float(), 0.25 * (u * u).sum(1, keepdim=True)).flatten()
    return inside / (BETA * floor.unsqueeze(1))


def kernel_slopes(feature: features.Feature, least: float, reach: float, width: float, world: World) -> Rows:
    """Slopes of a kernel rule's margins, averaged along the ways to the nearest image of each other class.

    A slope at x alone says little of a rule that is far from linear. Ways are cut at l-inf `reach`.
    """
    rule = KernelRule(feature, world.x, world.y, width)

    def rows(world: World, x: Tensor, y: int) -> Tensor:
        classes = torch.tensor(other_classes(y))
        ways = (torch.cat([world.nearest(x, c, 1) for c in other_classes(y)]) - x).clamp(-reach, reach)
        z = torch.cat([x + share * ways for share in (1 / 3, 2 / 3, 1.0)]).requires_grad_(True)
        answers, start = rule(z), rule(x.unsqueeze(0))[0]
        against = answers.gather(1, classes.repeat(3).unsqueeze(1)).squeeze(1) - answers[:, y]
        slopes = torch.autograd.grad(against.sum(), z)[0].view(3, 9, -1).mean(0)
        return slopes / (start[y] - start[classes]).clamp_min(least).unsqueeze(1)

    return rows
