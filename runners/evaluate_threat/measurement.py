"""What was measured, as charts and pictures need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy

from datasets.base import Dataset
from testing.perturbed import Perturbation
from threat_specification import ProjectedDisplacement

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Measurement:
    """Threats of perturbed images, and what came of them.

    threats   name -> [n, P]; a row for each of `index`, a column for each perturbation
    """

    data: Dataset
    threat: ProjectedDisplacement
    index: torch.Tensor
    perturbations: Sequence[Perturbation]
    threats: dict[str, numpy.ndarray]
    result: dict[str, Any]

    @property
    def main(self) -> list[str]:
        """Names of the threats that pictures have room for: without variants of PD."""
        return [name for name in self.threats if "[" not in name]
