"""Starting points of attacks, by name.

Gradient steps find a local maximum of the loss near the start. Starts near the image all lead to the same maximum.
Corners of the box, projected onto the set, are far from the image (three to four times as far in l2, and at the radius
in l-inf) and lead to other maxima.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from threat_specification.attacks.base import AttackSet, Task, per_image
from threat_specification.attacks.random_numbers import uniform

PATCHES = 7  # patches along each side of the image; pixels of a patch mostly go to the same bound

# (set, seed, index [B] in the data set, draw) -> a point of the set [B,C,H,W] that depends on these inputs only
Start = Callable[[AttackSet, int, Tensor, int], Tensor]


def image(allowed: AttackSet, seed: int, index: Tensor, draw: int) -> Tensor:
    """The clean image, without perturbation."""
    return torch.zeros_like(allowed.lower)


def noise(allowed: AttackSet, seed: int, index: Tensor, draw: int) -> Tensor:
    """Uniform noise between the bounds, projected onto the set."""
    return allowed.project(_noise(allowed, seed, index, draw))


def scaled_noise(allowed: AttackSet, seed: int, index: Tensor, draw: int) -> Tensor:
    """Uniform noise between the bounds, shrunk into the set instead of projected: cheap, but near the image."""
    return allowed.bound.scale(_noise(allowed, seed, index, draw), allowed.threshold, allowed.lower, allowed.upper)


def corner(allowed: AttackSet, seed: int, index: Tensor, draw: int) -> Tensor:
    """A random corner of the box, projected onto the set."""
    return allowed.project(allowed.corner(uniform(seed, index, draw, tuple(allowed.lower.shape[1:]))))


def smooth_corner(allowed: AttackSet, seed: int, index: Tensor, draw: int) -> Tensor:
    """A corner of the box, projected onto the set, in which neighbouring pixels mostly have the same sign."""
    channels, height, width = allowed.bound.examples.shape[1:]
    coarse = uniform(seed, index, draw, (channels, min(PATCHES, height), min(PATCHES, width))) - 0.5
    field = functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    share = allowed.from_pixels(torch.where(field < 0, 0.0, 1.0), lambda count: uniform(seed, index, draw, (count,)))
    return allowed.project(allowed.corner(share))


def bright(allowed: AttackSet, seed: int, index: Tensor, draw: int) -> Tensor:
    """Every pixel as bright as the box allows, projected onto the set."""
    return allowed.project(allowed.upper)


def dark(allowed: AttackSet, seed: int, index: Tensor, draw: int) -> Tensor:
    """Every pixel as dark as the box allows, projected onto the set."""
    return allowed.project(allowed.lower)


def _noise(allowed: AttackSet, seed: int, index: Tensor, draw: int) -> Tensor:
    """Uniform noise between the bounds."""
    return torch.lerp(allowed.lower, allowed.upper, uniform(seed, index, draw, tuple(allowed.lower.shape[1:])))


STARTS: dict[str, Start] = {
    "image": image,
    "noise": noise,
    "scaled_noise": scaled_noise,
    "corner": corner,
    "smooth_corner": smooth_corner,
    "bright": bright,
    "dark": dark,
}


def begin(task: Task, start: str, draw: int) -> Tensor:
    """The named start for the examples to attack; the others start at their clean images, at no cost."""
    allowed, robust = task.allowed, per_image(task.robust)
    lower, upper = torch.where(robust, allowed.lower, 0), torch.where(robust, allowed.upper, 0)
    return STARTS[start](replace(allowed, lower=lower, upper=upper), task.seed, task.index, draw)
