"""Facts about a data set that need no pixels. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from foundations.hparams import DatasetHparams


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Facts about a data set that need no pixels.

    loader     "module:function", called with the hyperparameters, these facts, and the folder to look in (or None)
    shape      (C, H, W)
    classes    names by label, or ids where that is how the set names them; () where only its folders tell
    titles     what people call the classes, where that differs
    mean, std  per channel over the training images, in pixels of [0, 1]
    num_train, num_test   of the published set; 0 where there is none
    resized    how much larger than `shape` images of folders are made before the centre is cut out
    defaults   flags whose default is another on this data set
    adapt      hyperparameters -> the facts that they change
    """

    summary: str
    loader: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_train: int = 0
    num_test: int = 0
    resized: float = 1.0
    defaults: dict[str, Any] = field(default_factory=dict)
    adapt: Callable[[DatasetHparams], dict[str, Any]] = lambda dataset: {}

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def title(self, label: int) -> str:
        """A class as people call it."""
        return (self.titles or self.classes)[label]
