"""Properties of images that a model depends on."""

from __future__ import annotations

from typing import Protocol


class ImageSpec(Protocol):
    """Shape (C, H, W), number of classes, and per-channel statistics of the training pixels in [0, 1]."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...
