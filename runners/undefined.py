"""Images for which a threat is not defined, and which evaluations leave out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from datasets.base import Examples, part_size
from foundations.environment import Environment
from threat_specification import Measure, ProjectedDisplacement


def without_direction(
    threats: Sequence[ProjectedDisplacement], images: Examples, rows: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """Mask [n] bool of the images that equal an anchor of another class: PD is not defined for them."""
    found = torch.zeros(len(rows), dtype=torch.bool)
    for part in torch.arange(len(rows)).split(part_size(shape)) if threats else ():
        pixels, labels = images.read(rows[part]), images.labels[rows[part]]
        for threat in threats:
            found[part] |= threat.equals_other_anchor(pixels, labels).cpu()
    return found


def without_object(
    threats: Iterable[Measure],
    images: Examples,
    rows: torch.Tensor,
    environment: Environment,
    shape: tuple[int, int, int],
) -> torch.Tensor:
    """Mask [n] bool of the images with an empty mask: all their changes have PD-S 0, or are not allowed."""
    found = torch.zeros(len(rows), dtype=torch.bool)
    masked = [threat for threat in threats if isinstance(threat, ProjectedDisplacement) and threat.segmented]
    for part in torch.arange(len(rows)).split(part_size(shape)) if masked else ():
        pixels = images.pixels(rows[part].to(images.labels.device)).to(environment.device)
        for threat in masked:
            found[part] |= threat.without_object(pixels, rows[part].to(environment.device)).cpu()
    return found


def left_of(rows: torch.Tensor, equal: torch.Tensor, empty: torch.Tensor, environment: Environment) -> torch.Tensor:
    """The rows [n] but for those that equal an anchor of another class or have an empty mask; tells how many."""
    for left_out, why in ((equal, "equal an anchor of another class"), (empty, "have an empty mask")):
        if bool(left_out.any()):
            environment.log(f"left out: {int(left_out.sum())} images that {why}")
    return rows[~(equal | empty)]
