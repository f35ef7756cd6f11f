"""What `bundle` and `verify` share: the images of a claim, its anchors, and the judge over both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from datasets.base import Dataset, Examples
from foundations.environment import Environment
from testing.claims.digests import images_digest
from testing.claims.judging import Judge, key, threat_of
from threat_specification import AnchorSet


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
