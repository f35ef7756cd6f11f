"""The perturbations that are measured: names, severities and groups, each as a function of a shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from datasets.base import Examples
from testing.perturbed import Perturbation, Perturbed
from testing.shards import Shard
from threat_specification.attacks.base import AttackSet, Task, predicted
from threat_specification.attacks.registry import ATTACKS
from threat_specification.perturbations.draws import Draws
from threat_specification.perturbations.morph import morph
from threat_specification.perturbations.unsafe import blend, partners, patch
from threat_specification.registry import norm

HEADLINE_BLENDS = (0.5, 0.75)  # shares of the other image in the main comparison, besides the whole other image
WEAK_BLENDS = (0.25,)
Masks = Callable[[Tensor, "Tensor | None"], Tensor]  # images and rows of the test set -> bool [n,1|C,H,W]
PATCHES = (0.1, 0.25, 0.5)  # shares of the image area


@dataclass
class Partners:
    """For each image, one of `images` of another class; computed once per shard.

    rows   the images among which partners are drawn (default: all)
    """

    images: Examples
    seed: int
    rows: Tensor | None = None
    # By the rows of the shard: parts of a shard, and shards of one image, have the same number.
    _known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, shard: Shard) -> tuple[Tensor, Tensor]:
        """Images [n,C,H,W] and labels [n] of the partners."""
        key = tuple(shard.index.tolist())
        if key not in self._known:
            device = shard.images.device
            rows = self._drawn(shard.labels.cpu(), shard.index.cpu())
            images = self.images.pixels(rows.to(self.images.labels.device))
            self._known = {key: (images.to(device), self.images.labels.cpu()[rows].to(device))}
        return self._known[key]

    def _drawn(self, labels: Tensor, index: Tensor) -> Tensor:
        """Rows of the partners of images with these labels and row numbers, [n]."""
        every = self.images.labels.cpu()
        rows = torch.arange(len(every)) if self.rows is None else self.rows
        return rows[partners(every[rows], labels, Draws(self.seed, index, "partner"))]

    def labels(self, index: Tensor) -> Tensor:
        """The labels of the partners of some rows, [n], without reading an image."""
        labels = self.images.labels.cpu()
        return labels[self._drawn(labels[index], index)]


def unsafe(find: Partners, seed: int) -> list[Perturbation]:
    """An image of another class, blends with it and patches of it. Blends are unsafe by PD's own definition."""

    def blended(amount: float) -> Callable[[Shard], Perturbed]:
        return lambda shard: (blend(shard.images, find(shard)[0], amount), None)

    def patched(area: float) -> Callable[[Shard], Perturbed]:
        return lambda shard: (patch(shard.images, find(shard)[0], area, Draws(seed, shard.index, "patch")), None)

    return [
        Perturbation("other_class", 1, "unsafe", "blends", "", blended(1)),
        *(Perturbation("blend", amount, "unsafe", "blends", "", blended(amount)) for amount in HEADLINE_BLENDS),
        *(Perturbation("blend", amount, "dose", "blends", "", blended(amount)) for amount in WEAK_BLENDS),
        *(Perturbation("patch", area, "dose", "patches", "", patched(area)) for area in PATCHES),
    ]


def regions(changes: Sequence[Perturbation], masks: Masks) -> list[Perturbation]:
    """The most severe form of each safe change, and the other image: in the object alone, and around it alone."""

    def part(change: Perturbation, inside: bool) -> Callable[[Shard], Perturbed]:
        def apply(shard: Shard) -> Perturbed:
            images, meant = change.apply(shard)
            mask = masks(shard.images, shard.index)
            return torch.where(mask if inside else ~mask, images, shard.images), meant

        return apply

    severest = {p.name: p for p in sorted(changes, key=lambda p: p.severity) if p.group == "safe"}
    chosen = [*severest.values(), *(p for p in changes if p.name == "other_class")]
    return [
        Perturbation(
            f"{p.name}, {region} alone", p.severity, region, p.suite, p.category, part(p, region == "foreground")
        )
        for p in chosen
        for region in ("foreground", "background")
    ]


def morphs(model: nn.Module, judge: nn.Module, find: Partners, of: str) -> list[Perturbation]:
    """Strong targeted changes by a robust model, kept where another model sees the target class.

    of   follows the name, if there are several models
    """

    def change(shard: Shard) -> Perturbed:
        targets = find(shard)[1]
        images, reached = morph(model, shard.images, targets)
        with torch.no_grad():
            return images, reached & (predicted(judge(images)) == targets)

    return [Perturbation(f"morph{of}", 1, "morph", "morphs", "", change)]


def adversarials(model: nn.Module, radii: dict[str, float], steps: int, seed: int, of: str) -> list[Perturbation]:
    """APGD in l_p balls, kept where it changes the answer of the model; the label stays.

    of   follows the name, if there are several models
    """

    def change(name: str, radius: float) -> Callable[[Shard], Perturbed]:
        def attack(shard: Shard) -> Perturbed:
            allowed = AttackSet.within(norm(name).bind(shard.images, shard.labels), radius, radius)
            with torch.no_grad():
                robust = predicted(model(shard.images)) == shard.labels
            found = ATTACKS["apgd_ce"](Task(model, shard.labels, allowed, robust, seed, shard.index, steps))
            return (shard.images + found.delta).clamp(0, 1), found.success

        return attack

    return [
        Perturbation(f"apgd_{name}{of}", radius, "adversarial", "adversarial", "", change(name, radius))
        for name, radius in radii.items()
    ]
