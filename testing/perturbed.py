"""The measurement of `evaluate_threat`: for every example, the threats of many of its perturbations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foundations.clock import timed
from testing.shards import Shard
from threat_specification.base import Measure, Threat

# Perturbed images [n,C,H,W] in [0, 1]; and a mask [n] bool, True if the perturbation exists for the image (None: all).
Perturbed = tuple[Tensor, "Tensor | None"]


@dataclass(frozen=True)
class Perturbation:
    """A perturbation, one column of the measurement.

    group   safe | unsafe (the headline) | dose (unsafe, weaker) | morph (unsafe, from another source) | adversarial |
            foreground, background (a change of one of them alone)
    suite   the source of the perturbation
    category  kind of a safe change, such as noise or blur; "" for others
    """

    name: str
    severity: float
    group: str
    suite: str
    category: str
    apply: Callable[[Shard], Perturbed]


@dataclass
class PerturbationEvaluation:
    """An evaluation of every perturbation by every measure; NaN if a perturbation does not exist for an example.

    seconds   time spent in this process, in seconds, on "perturbations" and on each measure
    """

    perturbations: Sequence[Perturbation]
    measures: dict[str, Measure]
    seconds: dict[str, float] = field(default_factory=dict)

    pictures = ()

    @property
    def columns(self) -> dict[str, str | tuple[str, int]]:
        return {name: ("float32", len(self.perturbations)) for name in self.measures}

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        measured = {name: self._bound(name, measure, shard) for name, measure in self.measures.items()}
        found: dict[str, list[Tensor]] = {name: [] for name in self.measures}
        for perturbation in self.perturbations:
            with timed(self.seconds, "perturbations", shard.images.device):
                images, meant = perturbation.apply(shard)
            for name, measure in measured.items():
                with timed(self.seconds, name, shard.images.device):
                    threat = measure(images).cpu()
                found[name].append(threat if meant is None else torch.where(meant.cpu(), threat, torch.nan))
        return {name: torch.stack(columns, dim=1) for name, columns in found.items()}

    def _bound(self, name: str, measure: Measure, shard: Shard) -> Callable[[Tensor], Tensor]:
        """The measure as a function of perturbed images; work that depends only on the shard is done once."""
        if not isinstance(measure, Threat):
            return lambda images: measure.evaluate(shard.images, shard.labels, images)
        context = {"indices": shard.index} if measure.segmented else {}
        with timed(self.seconds, name, shard.images.device):
            bound = measure.bind(shard.images, shard.labels, **context)
        return lambda images: bound.evaluate(images - shard.images)
