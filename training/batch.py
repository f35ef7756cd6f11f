"""A batch as training sees it: a part of a global batch, its images moved at random on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """What a loader gives: this process's part of a global batch.

    images, partner_images   [b,C,H,W] float32 in [0, 1]; a partner is another image of the global batch for each
    labels, partner_labels   [b];  index, partners  [b] their rows in the data set
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
    """A transform that can be taken back."""

    def __call__(self, images: Tensor, index: Tensor, draw: int) -> Tensor: ...

    def undo(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        """What lies in the moved frame, back in that of the images before; zeros where it does not reach."""
        ...


class Unmoved:
    """Images as they are."""

    def __call__(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        return images

    undo = __call__


unmoved = Unmoved()


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a source.

    move     where pixels go (crop, flip); masks of objects go the same way
    erase    what is blackened afterwards
    draw     number of the optimizer step: what is random depends on it, a seed and the data set index alone
    """

    source: Source
    rows: slice = field(default_factory=lambda: slice(None))
    move: Movement = unmoved
    erase: Transform = unmoved
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
        """As their own process sees them."""
        return self._augmented(self.source.partner_images[self.rows], self.source.partners[self.rows])

    @property
    def partner_labels(self) -> Tensor:
        return self.source.partner_labels[self.rows]

    @property
    def share(self) -> float:
        """Of the global batch."""
        return self.source.share * len(self.index) / len(self.source.index)

    def masks(self, mask_source: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Masks [b,1|C,H,W] of the images before they were moved, moved with them; False where zeros came in."""
        masks = mask_source(self.source.images[self.rows], self.index)
        return self.move(masks.float(), self.index, self.draw) > 0.5

    def context(self, threat: Any) -> dict[str, Tensor]:
        """What a segmented threat asks for besides images and labels."""
        return {"masks": self.masks(threat.mask_source)} if threat.segmented else {}

    def _augmented(self, images: Tensor, index: Tensor) -> Tensor:
        return self.erase(self.move(images, index, self.draw), index, self.draw)


def pieces(source: Source, count: int, move: Movement, erase: Transform, draw: int) -> Iterator[Batch]:
    """A source in `count` parts of nearly equal size, without empty ones."""
    for rows in torch.arange(len(source.index)).tensor_split(count):
        if len(rows):
            yield Batch(source, slice(int(rows[0]), int(rows[-1]) + 1), move, erase, draw)
