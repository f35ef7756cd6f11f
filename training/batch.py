"""Batches of training: parts of a global batch, with images augmented at random on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from threat_specification.intersection import Intersection


class Source(Protocol):
    """This process's part of a global batch, as a data loader returns it. Every image has a partner in the batch.

    images, partner_images   [b,C,H,W] float32 in [0, 1]; the partner of an image is another one of the global batch
    labels, partner_labels   [b]
    index, partners          [b] rows in the data set
    share                    b / global batch size
    """

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def index(self) -> Tensor: ...

    @property
    def partners(self) -> Tensor: ...

    @property
    def partner_images(self) -> Tensor: ...

    @property
    def partner_labels(self) -> Tensor: ...

    @property
    def share(self) -> float: ...


Transform = Callable[[Tensor, Tensor, int], Tensor]  # (images [b,C,H,W], index [b], draw) -> the same shape


class Movement(Protocol):
    """A transform that moves pixels, and can be reversed."""

    def __call__(self, images: Tensor, index: Tensor, draw: int) -> Tensor: ...

    def undo(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        """Move pixels back to their places before the movement; zeros for pixels that it had moved out of the image."""
        ...


class Unmoved:
    """The movement that changes nothing."""

    def __call__(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        return images

    undo = __call__


unmoved = Unmoved()


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a source, augmented.

    move     movement of pixels (crop, flip), also applied to the masks of objects
    change    transform that is applied afterwards, to images only (AugMix, cutout)
    draw     number of the optimizer step; random numbers depend only on it, a seed and the data set index
    """

    source: Source
    rows: slice = field(default_factory=lambda: slice(None))
    move: Movement = unmoved
    change: Transform = unmoved
    draw: int = 0

    @cached_property
    def index(self) -> Tensor:
        return self.source.index[self.rows]

    @cached_property
    def labels(self) -> Tensor:
        return self.source.labels[self.rows]

    @cached_property
    def images(self) -> Tensor:
        return self._augmented(self.source.images[self.rows], self.index)

    @cached_property
    def partner_images(self) -> Tensor:
        """The partner of each image, [b,C,H,W], augmented in the same way as in the batch that contains it."""
        return self._augmented(self.source.partner_images[self.rows], self.source.partners[self.rows])

    @property
    def partner_labels(self) -> Tensor:
        return self.source.partner_labels[self.rows]

    @property
    def share(self) -> float:
        """Size of this batch / global batch size."""
        return self.source.share * len(self.index) / len(self.source.index)

    def masks(self, mask_source: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Masks [b,1|C,H,W] of the objects, moved like the images; False for pixels from outside the image.

        mask_source   (images before any augmentation, index) -> masks
        """
        masks = mask_source(self.source.images[self.rows], self.index)
        return self.move(masks.float(), self.index, self.draw) > 0.5

    def context(self, threat: Any) -> dict[str, Tensor]:
        """The arguments that `bind` of a segmented threat needs besides images and labels; empty for other threats."""
        if not threat.segmented:
            return {}
        source = mask_source_of(threat)
        return {"indices": self.index} if source is None else {"masks": self.masks(source)}

    def _augmented(self, images: Tensor, index: Tensor) -> Tensor:
        return self.change(self.move(images, index, self.draw), index, self.draw)


def mask_source_of(threat: Any) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The mask source of a threat, or of the only segmented member of an intersection; else None."""
    if not isinstance(threat, Intersection):
        return getattr(threat, "mask_source", None)
    segmented = [member for member, _ in threat.members if member.segmented]
    return mask_source_of(segmented[0]) if len(segmented) == 1 else None


def pieces(source: Source, count: int, move: Movement, change: Transform, draw: int) -> Iterator[Batch]:
    """Split a source into `count` parts of nearly equal size; empty parts are left out."""
    for rows in torch.arange(len(source.index)).tensor_split(count):
        if len(rows):
            yield Batch(source, slice(int(rows[0]), int(rows[-1]) + 1), move, change, draw)
