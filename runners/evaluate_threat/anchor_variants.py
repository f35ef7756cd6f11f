"""The threat over other anchors of the same data: fewer or more per class, or chosen from half of the images."""

from __future__ import annotations

import torch
from torch import Tensor

from datasets.base import Dataset
from foundations.input_hparams import ThreatHparams
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.projected_displacement.anchor_selection import select_class
from threat_specification.projected_displacement.selection_space import SelectionSpace

PER_LABEL = (5, 10, 20, 50)


def variants(
    data: Dataset, hparams: ThreatHparams, space: SelectionSpace, seed: int, device: torch.device
) -> dict[str, ProjectedDisplacement]:
    """Threats by name: PD[k=5], ..., and PD[half 1], PD[half 2] with the usual number of anchors."""
    labels = data.train.labels.cpu()
    classes = {label: (labels == label).nonzero().flatten() for label in labels.unique().tolist()}
    smallest = min(len(rows) for rows in classes.values())
    threats = {
        f"PD[k={count}]": _threat(data, hparams, space, classes, count, seed, device)
        for count in PER_LABEL
        if count <= smallest
    }
    generator = torch.Generator().manual_seed(seed)
    shuffled = {label: rows[torch.randperm(len(rows), generator=generator)] for label, rows in classes.items()}
    for half in (0, 1):
        mine = {label: rows.tensor_split(2)[half] for label, rows in shuffled.items()}
        count = min(hparams.per_label, smallest // 2)
        threats[f"PD[half {half + 1}]"] = _threat(data, hparams, space, mine, count, seed, device)
    return threats


def _threat(
    data: Dataset,
    hparams: ThreatHparams,
    space: SelectionSpace,
    classes: dict[int, Tensor],
    count: int,
    seed: int,
    device: torch.device,
) -> ProjectedDisplacement:
    def load(rows: Tensor) -> Tensor:
        return as_bytes(data.train.pixels(rows.to(data.train.labels.device))).cpu()

    method, expansion = hparams.selection, hparams.domain_expansion_factor
    chosen = torch.cat(
        [select_class(load, space, rows, label, method, count, expansion, seed) for label, rows in classes.items()]
    )
    anchors = AnchorSet(load(chosen), data.train.labels.cpu()[chosen], chosen)
    return ProjectedDisplacement(hparams, anchors=anchors.to(device)).prepare()


def as_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as 8-bit values."""
    return (pixels * 255).round().byte()
