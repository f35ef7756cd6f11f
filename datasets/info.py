"""Facts about a data set that are known without reading its images. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from foundations.input_hparams import DatasetHparams


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Facts about a data set that are known without reading its images.

    loader     "module:function", called with the hyperparameters, these facts, and the data folder (or None)
    shape      (C, H, W)
    classes    names by label, or WordNet ids if the data set uses them; () if they are only known from its folders
    titles     names of the classes for people, if they differ from `classes`
    mean, std  per channel over the training images, for pixels in [0, 1]
    num_train, num_test   numbers of images in the published data set; 0 if there is no published one
    folders    names of its folder where downloads and archives put it, below the folder that is named
    files      the files and folders that its reader reads; "?" before a name: only if it is there
    compressed whether its reader takes <file>.gz too
    resized    for image files: shorter side after resizing, before the centre crop, relative to the side of `shape`
    defaults   defaults of flags that are different for this data set
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
    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    compressed: bool = False
    resized: float = 1.0
    defaults: dict[str, Any] = field(default_factory=dict)
    adapt: Callable[[DatasetHparams], dict[str, Any]] = lambda dataset: {}

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def title(self, label: int) -> str:
        """The name of a class for people."""
        return (self.titles or self.classes)[label]
