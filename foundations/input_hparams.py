"""Hyperparameters of what a run is given: data, model, anchors, and the precision of networks. Does not import torch.

`foundations/hparam_fields.py` defines how a field is declared.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from foundations.errors import UsageError
from foundations.hparam_fields import (
    Hparams,
    chunks,
    in_range,
    one_of,
    path_of_file,
    setting,
    shape,
    the_path,
    whole_path,
)
from foundations.lazy import load_object


@dataclass(frozen=True)
class DatasetHparams(Hparams):
    """The data set, and the selection of its images and labels."""

    heading: ClassVar[str] = "Data set"

    dataset_name: str = setting(
        "", "Data set: digits, mnist_5k, cifar10, image_folder, ... (all names: docs/data_and_models.md)."
    )
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
        "and numbers of images are not demanded, and names and contents of the files enter the hash.",
    )
    image_size: int = setting(
        0,
        "Side of the images read from folders, in pixels (0: 64, and 224 for imagenet).",
        check=in_range(0),
        when="dataset_name=image_folder|dataset_name=imagenet",
    )
    subsample_fraction: float = setting(
        1.0, "Use this share of the training images of every class, in (0, 1].", check=in_range(0, 1, above=True)
    )
    random_labels_fraction: float = setting(
        0.0,
        "Give this share of the training images a label drawn at random; anchors keep the true ones.",
        check=in_range(0, 1),
    )
    data_seed: int = setting(
        0,
        "Seed of --subsample_fraction and --random_labels_fraction, and of the images of synthetic.",
        check=in_range(0),
        when="is_drawn|dataset_name=synthetic",
    )
    synthetic_shape: str = setting(
        "3x32x32",
        "Shape of the images of synthetic: channels x height x width.",
        check=shape,
        when="dataset_name=synthetic",
        shows="CxHxW",
    )
    synthetic_classes: int = setting(10, "Classes of synthetic.", check=in_range(2), when="dataset_name=synthetic")
    synthetic_train: int = setting(
        1000, "Training images of synthetic.", check=in_range(1), when="dataset_name=synthetic"
    )
    synthetic_test: int = setting(200, "Test images of synthetic.", check=in_range(1), when="dataset_name=synthetic")

    def hashed(self) -> dict[str, Any]:
        # 2: where images cannot be shared out equally, it is random which classes get one more.
        return super().hashed() | ({"subsample_version": 2} if self.subsample_fraction < 1 else {})

    def _hashed_value(self, field: dataclasses.Field) -> Any:
        """The content of the data in place of their folder, wherever they are, in the default place too."""
        if field.name != "data_dir":
            return super()._hashed_value(field)
        digest: str = load_object("datasets.identity:digest_of_data")(self)
        return digest

    @property
    def is_drawn(self) -> bool:
        """True if images or labels are selected at random."""
        return self.subsample_fraction < 1 or self.random_labels_fraction > 0


@dataclass(frozen=True)
class ModelHparams(Hparams):
    """The model: architecture, source and initial weights."""

    heading: ClassVar[str] = "Model"

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
        "Whose model: ours, robustbench, timm, torchvision, or a checkpoint of the architecture named by --model_name: "
        "file:PATH, or hf:ORG/NAME[@REVISION] of the Hugging Face hub (default: as the name says).",
        path_in=path_of_file,
    )
    threat_model: str = setting(
        "Linf",
        "The part of RobustBench's zoo: Linf, L2 or corruptions.",
        check=one_of("Linf", "L2", "corruptions"),
        when="model_source=robustbench",
    )
    pixel_mean: tuple[float, ...] = setting(
        (),
        "Mean by which the checkpoint of --model_source=file: or hf: normalised pixels in [0, 1], a number for each "
        "channel (default: that of the checkpoint's normalising layer, else the data set's).",
        hashed=True,
    )
    pixel_std: tuple[float, ...] = setting(
        (), "Standard deviation that goes with --pixel_mean.", check=in_range(0, above=True), hashed=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.pixel_mean) != len(self.pixel_std):
            raise UsageError("--pixel_mean: expected as many numbers as --pixel_std")

    @property
    def path(self) -> str:
        """The checkpoint file of a file: source, else ""."""
        return path_of_file(self.model_source)


@dataclass(frozen=True)
class ThreatHparams(Hparams):
    """Selection and storage of the anchors of the Projected Displacement threat."""

    heading: ClassVar[str] = "Anchors and threat"

    per_label: int = setting(50, "Anchors chosen for each class.", check=in_range(1))
    selection: str = setting(
        "greedy_subsets",
        "How anchors are chosen: greedy_subsets, k_center (in l2, Gonzalez 1985), random or kmeans.",
        check=one_of("greedy_subsets", "k_center", "random", "kmeans"),
    )
    selection_space: str = setting(
        "normalised",
        "Images that the selection compares (greedy_subsets by cosine, k_center and kmeans in l2): normalised (each "
        "channel minus the data set's mean, over its standard deviation) or raw (pixels as they are).",
        check=one_of("normalised", "raw"),
        when="selection=greedy_subsets|selection=k_center|selection=kmeans",
    )
    domain_expansion_factor: int = setting(
        10,
        "Candidates per anchor: each half-set is chosen among this many times per_label / 2 images.",
        check=in_range(1),
        when="selection=greedy_subsets|selection=kmeans",
    )
    num_chunks: bool | int = setting(
        True,
        "Anchors are processed in this many chunks (True: chosen by size); changes memory, not results.",
        check=chunks,
        hashed=False,
    )
    shard_anchors: bool = setting(
        False,
        "Divide the anchors over the processes, for sets that no device can hold. In test and evaluate_threat all then "
        "work on the same examples; in train each works on its own, and they answer one another.",
        hashed=False,
    )
    halves: bool = setting(
        False,
        "compute_threat also compares the threats of its two half-sets of anchors, to judge how much depends on the "
        "images drawn. Of greedy_subsets and random they are two choices; of k_center and kmeans two parts of one.",
        hashed=False,
    )
    class_weights: str = setting(
        "",
        "Weights of the weighted form, kept with the anchors: a K x K matrix (.safetensors, .npy, "
        ".csv), tree:FILE with lines `class: path/of/groups`, or wordnet:PATH of WordNet's data.noun for ImageNet.",
        path_in=whole_path,
    )
    class_weights_form: str = setting(
        "distance",
        "What they are: distance (relative class distances in [0, 1], as in the paper: near classes are more of a "
        "threat), similarity (near classes have large weights, are less of one) or published_code (50 (W + 1e-4)^2).",
        check=one_of("distance", "similarity", "published_code"),
        when="class_weights",
    )
    class_weights_calibrate: bool = setting(
        False,
        "Scale them by one factor, so that the median threat stays that of the plain form.",
        when="class_weights",
    )
    strict: bool = setting(False, "compute_threat refuses training images that occur with two labels.", hashed=False)


@dataclass(frozen=True)
class PrecisionHparams(Hparams):
    """The precision of networks on a GPU."""

    heading: ClassVar[str] = "Precision"

    tf32: bool = setting(
        False,
        "Networks compute in TF32 on a GPU: faster, but factors of products have 10 mantissa bits instead of 23. test "
        "looks for a model trained with it; --train_dir names another. Threats and projections stay in float32.",
        hashed_if_set=True,
    )
