"""The data of a measurement, for charts and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy

from datasets.base import Dataset
from testing.perturbed import Perturbation
from threat_specification import ProjectedDisplacement, Threat

if TYPE_CHECKING:
    import torch

    from runners.evaluate_threat.coverage import Coverage


@dataclass(frozen=True)
class Measurement:
    """Threats of perturbed images, and the result computed from them.

    threats   name -> [n, P]; one row for each entry of `index`, one column for each perturbation
    class_distances   [n] class weight of each image and the image of another class that takes its place, if PD-W was
              measured
    sets      threats by name onto whose sets figures may project
    coverage  the changes of training images, if there were training images that are no anchors
    """

    data: Dataset
    threat: ProjectedDisplacement
    index: torch.Tensor
    perturbations: Sequence[Perturbation]
    threats: dict[str, numpy.ndarray]
    result: dict[str, Any]
    class_distances: numpy.ndarray | None = None
    coverage: Coverage | None = None
    sets: dict[str, Threat] = field(default_factory=dict)

    @property
    def other_class(self) -> int:
        """The column of the whole image of another class."""
        return next(c for c, p in enumerate(self.perturbations) if (p.group, p.name) == ("unsafe", "other_class"))

    def columns(self, group: str) -> list[int]:
        """The columns of a group of perturbations."""
        return [column for column, p in enumerate(self.perturbations) if p.group == group]

    def unit(self, name: str) -> float:
        """The median threat of an image of another class: the unit in which threats are compared."""
        return max(float(numpy.median(self.threats[name][:, self.other_class])), 1e-12)

    @property
    def main(self) -> list[str]:
        """Names of the threats that figures show: all without the variants of PD."""
        return [name for name in self.threats if "[" not in name]
