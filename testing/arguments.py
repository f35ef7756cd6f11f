"""Arguments of the functions for use from Python, checked once: tensors, arrays or lists, and any kind of model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foundations.errors import UsageError
from foundations.modes import evaluation_mode
from threat_specification.answers import as_tensor, checked_labels, checked_model
from threat_specification.attacks.search import Cell
from threat_specification.base import Threat, check_images, check_rows, check_set
from threat_specification.norms import default_radius


@dataclass(frozen=True)
class Given:
    """Checked arguments of a question about a model in {threat <= threshold, l-inf <= radius}.

    model    one of float32 logits [B,K]; num_classes: K
    images   [n,C,H,W] float32 in [0, 1], at least one; labels [n] int64 beside them
    cell     the two bounds
    """

    model: nn.Module
    num_classes: int
    images: Tensor
    labels: Tensor
    cell: Cell

    @classmethod
    def checked(
        cls, model: nn.Module, images: Any, labels: Any, threat: Threat, threshold: float, radius: float | None
    ) -> Given:
        """Check them all; a radius that is not given is that of `default_radius`.

        Raises UsageError that says what was expected.
        """
        if torch.is_inference_mode_enabled():
            raise UsageError("attacks need gradients, which torch.inference_mode() forbids: call them outside of it")
        images = checked_images(images)
        check_set(threat, threshold, radius)
        if not len(images):
            raise UsageError("images: expected at least one, got none")
        if images.dim() != 4:
            raise UsageError(f"images: expected [n,C,H,W], got {list(images.shape)}")
        with evaluation_mode(model):
            model, num_classes = checked_model(model, images[:1])
        labels = checked_labels(labels, images, num_classes)
        check_images(images, labels)
        check_rows(threat, len(images))
        if radius is None:
            radius = default_radius(threat)
        return cls(model, num_classes, images, labels, Cell(threshold, radius))


def checked_images(images: Any) -> Tensor:
    """Images as a float32 tensor; raises UsageError for what is no array of numbers."""
    images = as_tensor("images", images).detach().float()
    return images.clone() if images.is_inference() else images  # attacks need gradients for them


def refuse_autocast(what: str, images: Tensor) -> None:
    """Raise UsageError inside torch.autocast: proofs are of networks in float32."""
    if torch.is_autocast_enabled(images.device.type):
        raise UsageError(f"{what}: expected a network in float32, got torch.autocast; call them outside of it")
