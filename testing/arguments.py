"""Arguments of the functions for use from Python, checked once: tensors, arrays or lists, and any kind of model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foundations.errors import UsageError
from foundations.modes import evaluation_mode
from threat_specification.attacks.search import Cell
from threat_specification.base import WHOLE, Threat, check_images, check_set
from threat_specification.norms import L2, RADIUS, Linf


class Logits(nn.Module):
    """A model whose answers are float32, and which cannot change the images that it is given.

    copies   whether the model works on copies of the images, since it changes them in place
    kind     the type of numbers that it takes
    """

    def __init__(self, model: nn.Module, kind: torch.dtype, copies: bool) -> None:
        super().__init__()
        self.model, self.kind, self.copies = model, kind, copies

    def forward(self, images: Tensor) -> Tensor:
        images = images.to(self.kind)
        answers: Tensor = self.model(images.clone() if self.copies else images)
        return answers.float()


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
        """Check them all; without a radius there is none for L2 and Linf, and RADIUS for other threats.

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
        if radius is None:
            radius = math.inf if isinstance(threat, (L2, Linf)) else RADIUS
        return cls(model, num_classes, images, labels, Cell(threshold, radius))


def checked_images(images: Any) -> Tensor:
    """Images as a float32 tensor; raises UsageError for what is no array of numbers."""
    images = _tensor("images", images).detach().float()
    return images.clone() if images.is_inference() else images  # attacks need gradients for them


def checked_labels(labels: Any, images: Tensor, num_classes: int) -> Tensor:
    """Labels as int64 beside the images; raises UsageError if one is no class."""
    labels = _tensor("labels", labels)
    if labels.dtype not in WHOLE or labels.shape != images.shape[:1]:
        raise UsageError(
            f"labels: expected {len(images)} whole numbers, one for each image, got {labels.dtype} {list(labels.shape)}"
        )
    labels = labels.to(images.device, torch.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UsageError(f"labels: expected classes from 0 to {num_classes - 1}, as the model has, got {low} to {high}")
    return labels


def checked_model(model: nn.Module, image: Tensor) -> tuple[nn.Module, int]:
    """The model as one of float32 logits [B,K], and K; tried on one image [1,C,H,W].

    Raises UsageError if it answers with anything else.
    """
    weight = next((each for each in model.parameters() if each.is_floating_point()), image)
    if weight.device != image.device:
        raise UsageError(f"images: expected them on {weight.device}, where the model is, got {image.device}")
    given = image.to(weight.dtype).clone().detach()
    with torch.no_grad():
        answer = model(given)
    if not isinstance(answer, Tensor):
        raise UsageError(
            f"model: expected logits [B,K], got a {type(answer).__name__}; wrap it so that it returns them"
        )
    if answer.dim() != 2 or len(answer) != 1 or answer.shape[1] < 2 or not answer.is_floating_point():
        raise UsageError(
            f"model: expected logits [1,K] of two classes or more for an image, got {answer.dtype} {list(answer.shape)}"
        )
    copies = given._version > 0  # counts changes in place
    plain = not copies and answer.dtype == weight.dtype == torch.float32
    return (model if plain else Logits(model, weight.dtype, copies)), answer.shape[1]


def _tensor(name: str, values: Any) -> Tensor:
    try:
        return values if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{name}: expected a tensor, an array or a list of numbers, got {type(values).__name__}"
        ) from error
