"""The images of a claim, its anchors, and the judge over both, for `bundle`, `verify` and `report --site`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor, nn

from datasets.base import Dataset, Examples
from datasets.registry import dataset_info
from foundations.environment import Environment
from foundations.errors import RunError
from foundations.hparam_fields import Hparams
from foundations.input_hparams import DatasetHparams
from testing.claims.archive import MOST_BYTES
from testing.claims.claim import Claim
from testing.claims.digests import images_digest
from testing.claims.judging import Judge, key, threat_of
from threat_specification import AnchorSet

REFUTED = "refuted.json"  # what `verify` leaves, in place of a result, of a claim that does not hold

Flags = TypeVar("Flags", bound=Hparams)


def images_of(data: Dataset, split: str) -> Examples:
    """The images that a split of `test` names by their rows."""
    return data.test if split == "test" else data.train


def digest_of(examples: Examples, rows: Tensor) -> str:
    return images_digest(examples.read, rows, examples.labels[rows])


def anchors_digest(anchors: AnchorSet) -> str:
    return images_digest(anchors.images.__getitem__, torch.arange(len(anchors)), anchors.labels)


def judge_of(
    forms: Sequence[dict[str, Any]],
    model: nn.Module,
    examples: Examples,
    index: numpy.ndarray,
    anchors: AnchorSet | None,
    class_weights: numpy.ndarray | None,
    environment: Environment,
) -> Judge:
    """A judge of points of the examples in these rows, on the device."""
    device, rows = environment.device, torch.from_numpy(index)
    anchors = None if anchors is None else anchors.to(device)
    weights = None if class_weights is None else torch.from_numpy(class_weights)
    threats = {key(form): threat_of(form, anchors, weights) for form in forms}
    labels = examples.labels[rows].to(device)

    def read(numbers: Tensor) -> Tensor:
        return examples.read(rows[numbers.cpu()]).to(device)

    return Judge(model, read, labels, rows.to(device), threats)


def flags_of(group: type[Flags], values: dict[str, Any], file: Path) -> Flags:
    """A group of flags by what a claim says; raises RunError for what is no flag's value."""
    try:
        return group.of(values)
    except (TypeError, ValueError) as error:
        raise RunError(f"{file} is refused: {error}") from error


def dataset_of(claim: Claim, file: Path, **place: Any) -> DatasetHparams:
    """The flags of a claim's data set, with its place on this machine."""
    dataset = flags_of(DatasetHparams, {**claim.facts["data"]["description"], **place}, file)
    images = dataset.synthetic_train + dataset.synthetic_test
    if dataset.dataset_name == "synthetic" and images * math.prod(dataset_info(dataset).shape) > MOST_BYTES:
        raise RunError(f"{file} is refused: it asks for {images:,} images to be made")
    return dataset


def check_images(claim: Claim, file: Path, data: Dataset) -> None:
    """Raise RunError if a claim is about other images or labels than those that are here."""
    told, arrays = claim.facts["data"], claim.arrays
    examples, rows = images_of(data, told["split"]), torch.from_numpy(arrays["index"])
    shape, classes = list(data.info.shape), data.info.num_classes
    if (told["shape"], told["classes"]) != (shape, classes):
        raise disagrees(file, f"images of {told['shape']} in {told['classes']} classes", f"{shape} in {classes}")
    if int(rows[-1]) >= len(examples):
        raise disagrees(file, f"image {int(rows[-1])}", f"{len(examples)} images")
    other = (examples.labels[rows] != torch.from_numpy(arrays["label"])).nonzero()
    digest = digest_of(examples, rows)
    if len(other):
        row = int(other[0])
        here = int(examples.labels[rows[row]])
        error = disagrees(file, f"image {int(rows[row])} has label {int(arrays['label'][row])}", f"label {here}")
        # The digest is of the labels too: they are not those of the images and labels that it says it is about.
        raise Refuted(str(error)) if digest == told["sha256"] else error
    if digest != told["sha256"]:
        raise disagrees(file, f"images of SHA-256 {told['sha256'][:12]}", digest[:12])


class Refuted(RunError):
    """A claim contradicts itself, whatever data set is here: it is false."""


def disagrees(file: Path, told: str, here: str) -> RunError:
    return RunError(f"{file} does not hold: it says {told}, got {here} in the data set that is here")
