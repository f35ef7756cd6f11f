"""Checks of flags that several descriptions share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from datasets.registry import DATASETS, dataset_info
from foundations.errors import UsageError, nearest
from foundations.input_hparams import DatasetHparams, ModelHparams
from models.registry import check_fit
from models.sources import resolved, zoo_entry
from threat_specification.perturbations.registry import SUITES, versions

SUITE_NAMES = tuple(SUITES)
FEWER_SEVERITIES = "files with fewer severities"  # a fault of earlier figures, in `mended` of the hash

DREAMSIM = ("ensemble", "dino_vitb16", "clip_vitb32", "open_clip_vitb32", "dinov2_vitb14", "synclr_vitb16")
PACKAGE_DISTANCES = ("lpips", "dreamsim", *(f"dreamsim:{backbone}" for backbone in DREAMSIM))
EXPECTED_DISTANCES = f"lpips, dreamsim, dreamsim:<backbone> (one of {', '.join(DREAMSIM)})"


def names_in(value: str) -> list[str]:
    """The names in a comma-separated list."""
    return [name.strip() for name in value.split(",") if name.strip()]


def check_distances(flag: str, value: str) -> None:
    """Raise UsageError if a comma-separated list holds another name than those of perceptual distances of packages."""
    for name in names_in(value):
        if name not in PACKAGE_DISTANCES:
            hint = nearest(name, list(PACKAGE_DISTANCES))
            raise UsageError(f"--{flag}: expected {EXPECTED_DISTANCES}, comma-separated{hint}, got {name}")


def versions_of(suites: list[str]) -> dict[str, Any]:
    """The entry of a run's hash for corruptions (suites, or names) whose images have changed since version 1."""
    changed = versions(name.partition(":")[0] for name in suites)
    return {"corruption_versions": changed} if changed else {}


def file_to_write(flag: str, value: str) -> Path:
    """The file that a flag names, to be written; raises UsageError if a folder is there."""
    path = Path(value).expanduser()
    if path.is_dir():
        raise UsageError(f"--{flag}: expected a file to write, got the folder {path}; add a name")
    return path


def folder_to_write(flag: str, value: str) -> Path:
    """The folder that a flag names, to write into; raises UsageError if a file is there."""
    path = Path(value).expanduser()
    if path.exists() and not path.is_dir():
        raise UsageError(f"--{flag}: expected a folder to write into, got the file {path}")
    return path


def check_dataset(dataset: DatasetHparams) -> None:
    if not dataset.dataset_name:
        raise UsageError("--dataset_name is required, for example --dataset_name=mnist_5k")
    dataset_info(dataset)


def truly_labelled(dataset: DatasetHparams) -> DatasetHparams:
    """The data set without random labels: those are of training, and a threat is about what images show."""
    return dataclasses.replace(dataset, random_labels_fraction=0.0)


def resolved_model(model: ModelHparams, dataset: DatasetHparams) -> ModelHparams:
    """The model by its canonical name; raises UsageError if it cannot take the images of the data set."""
    model = resolved(model, dataset.dataset_name, DATASETS)
    if zoo_entry(model, dataset.dataset_name) is None:
        check_fit(model.model_name, dataset_info(dataset))
    return model


def check_mask_rows(flag: str, mask_source: str, dataset: DatasetHparams) -> None:
    """Raise UsageError for masks from a file if only a part of the training set is used.

    Such masks are indexed by row numbers of the whole training set.
    """
    if mask_source.startswith("file:") and dataset.subsample_fraction < 1:
        raise UsageError(
            f"--{flag}={mask_source}: expected all training images, got --subsample_fraction="
            f"{dataset.subsample_fraction:g}; use another source of masks, or all images"
        )


def needs_weights(flag: str) -> str:
    return f"--{flag}: expected --class_weights=FILE, as compute_threat was given them, got none"
