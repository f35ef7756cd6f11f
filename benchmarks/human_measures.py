"""Ideas for a measure that agrees with people and is not linear in the change: sizes that can be evaluated alone.

An idea is made for a `World` and gives a function of x [784], its label and changed images z [m,784]: sizes [m] >= 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import human_features as features
from benchmarks.human_features import Feature, square
from benchmarks.human_linear import Size, towards
from benchmarks.human_world import InformedRule, KernelRule, World, other_classes
from threat_specification.ssim import SSIMDistance


def displaced(feature: Feature, world: World) -> Size:
    """PD of the change of a feature, towards the features of the anchors."""
    anchors = feature(world.anchors[0])

    def size(x: Tensor, y: int, z: Tensor) -> Tensor:
        before = feature(x.unsqueeze(0))
        u = anchors[world.anchors[1] != y] - before
        return ((feature(z) - before) @ towards(u, u).T).amax(1).clamp_min(0)

    return size


def displaced_freely(feature: Feature, world: World, step: float = 0.15) -> Size:
    """The same in a metric in which what safe directions of x do to the feature is nearly free, as in PD-T."""
    anchors = feature(world.anchors[0])

    def size(x: Tensor, y: int, z: Tensor) -> Tensor:
        before, safe = feature(x.unsqueeze(0)), step * features.safe_directions(x)
        t = F.normalize(torch.cat([feature(x + safe) - before, before - feature(x - safe)]), dim=1)
        u = anchors[world.anchors[1] != y] - before
        return ((feature(z) - before) @ towards(features.freed(t, u), u).T).amax(1).clamp_min(0)

    return size


def own_displaced(feature: Feature, world: World, k: int = 10, step: float = 0.15) -> Size:
    """The same towards near images of other classes less the nearest of the own class (e)."""
    points = feature(world.x)

    def size(x: Tensor, y: int, z: Tensor) -> Tensor:
        before, safe = feature(x.unsqueeze(0)), step * features.safe_directions(x)
        t = F.normalize(torch.cat([feature(x + safe) - before, before - feature(x - safe)]), dim=1)
        apart = (points - before).norm(dim=1)
        near = [points[world.y == c][apart[world.y == c].topk(k, largest=False).indices] for c in range(10)]
        others = torch.cat([near[c] for c in other_classes(y)])
        partner = near[y][torch.cdist(others, near[y]).argmin(1)]
        v = towards(features.freed(t, others - partner), others - before)
        return ((feature(z) - before) @ v.T).amax(1).clamp_min(0)

    return size


def lost(margin: Callable[[Tensor, int], Tensor], least: float) -> Size:
    """The share of the margin at x (at least `least`) that is lost at z: 1 where it is used up."""

    def size(x: Tensor, y: int, z: Tensor) -> Tensor:
        start = margin(x.unsqueeze(0), y)
        return ((start - margin(z, y)) / start.clamp_min(least)).clamp_min(0)

    return size


def by_scores(scores: Callable[[Tensor], Tensor], least: float) -> Size:
    """`lost` of a rule that gives each class a score."""

    @torch.no_grad()
    def margin(z: Tensor, y: int) -> Tensor:
        found = scores(z)
        return found[:, y] - found[:, other_classes(y)].amax(1)

    return lost(margin, least)


def informed(feature: Feature, world: World) -> Size:
    """`lost` of a kernel rule that has learnt x too, so that no x starts on the wrong side."""
    rule = InformedRule(feature, world.x, world.y)

    @torch.no_grad()
    def size(x: Tensor, y: int, z: Tensor) -> Tensor:
        answers = rule.informed(x, y, z)
        margin = answers[:, y] - answers[:, other_classes(y)].amax(1)
        return ((margin[0] - margin[1:]) / margin[0].clamp_min(0.1)).clamp_min(0)

    return size


def kernel(feature: Feature, world: World) -> Size:
    return by_scores(KernelRule(feature, world.x, world.y), 0.2)


def by_distances(distances: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> Size:
    """`lost` of log(distance to other classes / distance to the own class)."""

    def margin(z: Tensor, y: int) -> Tensor:
        own, other = distances(z, y)
        return other.clamp_min(1e-6).log() - own.clamp_min(1e-6).log()

    return lost(margin, 0.1)


def neighbours(feature: Feature, world: World, k: int = 3) -> Size:
    """The k-th nearest image of the own and of any other class, by the l2 distance of a feature."""
    points = feature(world.x)

    def distances(z: Tensor, y: int) -> tuple[Tensor, Tensor]:
        apart = torch.cdist(feature(z), points)
        own, other = (apart[:, rows].topk(k, largest=False).values.mean(1) for rows in (world.y == y, world.y != y))
        return own, other

    return by_distances(distances)


def nearest_ratio(feature: Feature, world: World) -> Size:
    """(e) Distance to x or to the nearest image of its class / distance to the nearest of any other class."""
    points = feature(world.x)

    def size(x: Tensor, y: int, z: Tensor) -> Tensor:
        before, after = feature(x.unsqueeze(0)), feature(z)
        apart = torch.cdist(after, points)
        own = torch.minimum(torch.cdist(after, before)[:, 0], apart[:, world.y == y].amin(1))
        return own / apart[:, world.y != y].amin(1).clamp_min(1e-3)

    return size


def tangent_neighbours(world: World, k: int = 3) -> Size:
    """The same in tangent distance: the images may be deformed a little."""
    flat, points = world.tangents.permute(1, 0, 2).flatten(1), world.x
    offsets = torch.einsum("npt,np->nt", world.tangents, points).flatten()

    def distances(z: Tensor, y: int) -> tuple[Tensor, Tensor]:
        reached = (z @ flat - offsets).view(len(z), len(points), -1).square().sum(2)
        apart = (torch.cdist(z, points).square() - reached).clamp_min(0).sqrt()
        own, other = (apart[:, rows].topk(k, largest=False).values.mean(1) for rows in (world.y == y, world.y != y))
        return own, other

    return by_distances(distances)


def distortion_neighbours(world: World, own: int = 5, other: int = 10, k: int = 2) -> Size:
    """The same in the image distortion model, among the nearest images by blurred l2."""

    def distances(z: Tensor, y: int) -> tuple[Tensor, Tensor]:
        blurred, found = features.blurred(z), []
        for rows, number in ((world.y == y, own), (world.y != y, other)):
            near = torch.cdist(blurred, world.blurred[rows]).topk(number, largest=False).indices
            apart = torch.cat([features.image_distortion(some, world.x[rows][of], 1)
                               for some, of in zip(z.split(32), near.split(32), strict=True)])  # fmt: skip
            found.append(apart.topk(k, largest=False).values.mean(1))
        return found[0], found[1]

    return by_distances(distances)


def similarity(world: World) -> Size:
    """1 - SSIM."""
    ssim = SSIMDistance()

    def size(x: Tensor, y: int, z: Tensor) -> Tensor:
        return ssim.evaluate(square(x).expand(len(z), 1, 28, 28), torch.full((len(z),), y), square(z).clamp(0, 1))

    return size


def strokes(world: World) -> Size:
    """(d) Ink that came or went far from other ink, and holes and parts that came or went, over four levels."""
    levels = (0.15, 0.25, 0.5, 0.75)

    def size(x: Tensor, y: int, z: Tensor) -> Tensor:
        before = features.blurred(x, 0.7).view(28, 28).numpy()
        counts = [features.holes_and_parts(before, level) for level in levels]
        found = []
        for after in features.blurred(z, 0.7).view(-1, 28, 28).numpy():
            ink = max(features.far_ink(before, after, level) for level in levels)
            topology = sum(
                abs(old - new)
                for level, olds in zip(levels, counts, strict=True)
                for old, new in zip(olds, features.holes_and_parts(after, level), strict=True)
            )
            found.append(ink + 0.05 * topology)
        return torch.tensor(found)

    return size


def length(world: World) -> Size:
    return lambda x, y, z: (z - x).norm(dim=1)
