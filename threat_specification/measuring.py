"""The size of a change under several threats at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor

from foundations.errors import UsageError
from threat_specification.base import Measure, Threat, check_images, check_rows

TOGETHER = 250  # images measured at once


def evaluate_threat_of(
    change: Tensor | Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, threats: Measure | Sequence[Measure]
) -> dict[str, Tensor]:
    """The size of a change of each image under each threat: name -> [n] float32, at least 0.

    change   the changed images [n,C,H,W], of any finite values; or a function that makes them of all images at once
    images   [n,C,H,W] in [0, 1]; labels: [n] whole numbers
    threats  one or several. Units: 1 is half-way to an image of another class for ProjectedDisplacement, pixels of
             [0, 1] for L2 and Linf. Of two with one name, the second is called "name 2". Masks of a file are those of
             these images, in their order

    Raises UsageError for images outside [0, 1], changed images of another shape, NaN and infinity, and for images that
    a segmented threat has an empty mask of.

    >>> images, labels = torch.full((2, 1, 2, 2), 0.25), torch.tensor([0, 1])
    >>> both = [nonisotropic.L2(), nonisotropic.Linf()]
    >>> nonisotropic.evaluate_threat_of(lambda images: images + 0.5, images, labels, both)
    {'L2': tensor([1., 1.]), 'Linf': tensor([0.5000, 0.5000])}
    """
    several = [threats] if isinstance(threats, Measure) else list(threats)
    for threat in several:
        if not isinstance(threat, Measure):
            raise UsageError(f"threats: expected threats, such as nonisotropic.L2(), got {threat!r}")
    if not isinstance(change, Tensor) and not callable(change):
        raise UsageError(f"change: expected changed images or a function, got a {type(change).__name__}")
    check_images(images, labels)
    if isinstance(change, Tensor) and change.shape != images.shape:
        raise UsageError(f"change: expected images {list(images.shape)}, got {list(change.shape)}")
    for threat in several:
        if isinstance(threat, Threat):
            check_rows(threat, len(images))
    found: dict[str, list[Tensor]] = {name: [] for name in _names(several)}
    index = torch.arange(len(images), device=images.device)
    with torch.no_grad():
        changed = change if isinstance(change, Tensor) else _made(change, images)
        check_images(images, labels, changed)
        for start in range(0, len(images), TOGETHER):
            rows = slice(start, start + TOGETHER)
            for values, threat in zip(found.values(), several, strict=True):
                context = {"indices": index[rows]} if isinstance(threat, Threat) and threat.segmented else {}
                values.append(threat(images[rows], labels[rows], changed[rows], **context))
    return {name: torch.cat(values) if values else torch.zeros(0) for name, values in found.items()}


def _made(change: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The images that a function makes, of all at once: in parts, random numbers by place would begin anew in each.

    It gets a copy, since one that works in place would change what it is compared with.
    """
    return change(images.clone()) if len(images) else images


def _names(threats: Sequence[Measure]) -> list[str]:
    names: list[str] = []
    for threat in threats:
        others = (f"{threat.name} {number}" for number in count(2))
        names.append(threat.name if threat.name not in names else next(name for name in others if name not in names))
    return names
