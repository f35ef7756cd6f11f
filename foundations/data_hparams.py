"""Hyperparameters of data sets and models: what is read, and where weights start. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass

from foundations.errors import UsageError
from foundations.settings import Hparams, in_range, one_of, setting

SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")


def shape(text: str) -> str | None:
    """Accept CxHxW."""
    found = SHAPE.fullmatch(text)
    return None if found and min(map(int, found.groups())) > 0 else "channels, height and width such as 3x32x32"


def the_path(value: str) -> str:
    """The value itself is a path."""
    return value


def path_of_file(value: str) -> str:
    """The path of `file:PATH`; other sources have none."""
    return value.removeprefix("file:") if value.startswith("file:") else ""


@dataclass(frozen=True)
class DatasetHparams(Hparams):
    """Which data."""

    dataset_name: str = setting("", "Name of a data set in the registry (datasets/registry.py).")
    data_dir: str = setting(
        "",
        "A data set's folder, or its parent (else data/ below the root).",
        path_in=the_path,
        when="dataset_name=image_folder|own_files",
    )
    download: bool = setting(False, "Fetch the data set into --data_dir where it is not there.", hashed=False)
    own_files: bool = setting(
        False,
        "The files have the format but not the content of the published ones, a part of them for example: checksums "
        "and numbers of images are not demanded, and names and sizes of the files enter the hash.",
    )
    image_size: int = setting(
        0,
        "Side of the images read from folders, in pixels (0: 64, and 224 for imagenet).",
        check=in_range(0),
        when="dataset_name=image_folder|dataset_name=imagenet",
    )
    subsample_fraction: float = setting(
        1.0, "Use this share of the training images, of every class.", check=in_range(0, 1, above=True)
    )
    random_labels_fraction: float = setting(
        0.0, "Give this share of the training images a label drawn at random.", check=in_range(0, 1)
    )
    data_seed: int = setting(
        0,
        "Seed of those two, and of the images of synthetic.",
        check=in_range(0),
        when="is_drawn|dataset_name=synthetic",
    )
    synthetic_shape: str = setting(
        "3x32x32", "Shape of synthetic's images.", check=shape, when="dataset_name=synthetic"
    )
    synthetic_classes: int = setting(10, "Its classes.", check=in_range(2), when="dataset_name=synthetic")
    synthetic_train: int = setting(1000, "Its training images.", check=in_range(1), when="dataset_name=synthetic")
    synthetic_test: int = setting(200, "Its test images.", check=in_range(1), when="dataset_name=synthetic")

    @property
    def is_drawn(self) -> bool:
        """Whether a choice of images or labels is random."""
        return self.subsample_fraction < 1 or self.random_labels_fraction > 0


@dataclass(frozen=True)
class ModelHparams(Hparams):
    """Which model."""

    model_name: str = setting(
        "",
        "Architecture such as lenet, resnet_20, wideresnet_28_10, timm:<name> or torchvision:<name>; with "
        "--model_type=pretrained also a name of RobustBench's zoo.",
    )
    model_type: str = setting(
        "scratch",
        "Where weights start: scratch (random) or pretrained. train goes on from them; test measures a trained model "
        "(scratch), a fine-tuned one (finetuned) or the pretrained one as it is.",
        check=one_of("scratch", "pretrained", "finetuned"),
    )
    model_source: str = setting(
        "",
        "Whose model: ours, robustbench, timm, torchvision, or file:PATH, a checkpoint of the architecture named by "
        "--model_name (default: as the name says).",
        path_in=path_of_file,
    )
    threat_model: str = setting(
        "Linf",
        "The part of RobustBench's zoo: Linf, L2 or corruptions.",
        check=one_of("Linf", "L2", "corruptions"),
        when="model_source=robustbench",
    )
    pixel_mean: tuple[float, ...] = setting(
        (), "Mean that the pixels of a file: checkpoint were normalised by (default: the data set's).", hashed=True
    )
    pixel_std: tuple[float, ...] = setting(
        (), "Standard deviation that goes with it.", check=in_range(0, above=True), hashed=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.pixel_mean) != len(self.pixel_std):
            raise UsageError("--pixel_mean: expected as many numbers as --pixel_std")

    @property
    def path(self) -> str:
        """Of the checkpoint of a file: source, else ""."""
        return path_of_file(self.model_source)
