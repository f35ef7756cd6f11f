"""Models and labels that are given from Python, checked: what a model answers, and that labels are its classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foundations.errors import UsageError
from threat_specification.base import WHOLE


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


class LogitsOf(nn.Module):
    """A model that raises UsageError, at a pass, if it does not answer with logits of the classes of some labels.

    It asks at the passes that are made anyway, so that a network whose last layer was replaced is asked as it is now.
    Answers are float32, whatever type of numbers the model computes in.
    """

    def __init__(self, model: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.model, self.range = model, (int(labels.min()), int(labels.max()))
        self.kind = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)

    def forward(self, images: Tensor) -> Tensor:
        answers = self.model(images.to(self.kind))
        check_logits(answers, len(images))
        check_classes(*self.range, answers.shape[1])
        return answers.float()


def check_logits(answers: Any, count: int) -> None:
    """Raise UsageError if answers for that many images are no floats [count,K] for two classes or more."""
    if not isinstance(answers, Tensor):
        raise UsageError(
            f"model: expected logits [B,K], got a {type(answers).__name__}; wrap it so that it returns them"
        )
    if answers.dim() != 2 or len(answers) != count or answers.shape[1] < 2 or not answers.is_floating_point():
        asked = "an image" if count == 1 else f"{count} images"
        raise UsageError(
            f"model: expected logits [{count},K] of two classes or more for {asked}, got {answers.dtype} "
            f"{list(answers.shape)}"
        )


def check_classes(low: int, high: int, num_classes: int) -> None:
    """Raise UsageError if labels from low to high are not all classes of a model."""
    if low < 0 or high >= num_classes:
        raise UsageError(f"labels: expected classes from 0 to {num_classes - 1}, as the model has, got {low} to {high}")


def checked_labels(labels: Any, images: Tensor, num_classes: int) -> Tensor:
    """Labels as int64 beside the images; raises UsageError if one is no class."""
    labels = as_tensor("labels", labels)
    if labels.dtype not in WHOLE or labels.shape != images.shape[:1]:
        raise UsageError(
            f"labels: expected {len(images)} whole numbers, one for each image, got {labels.dtype} {list(labels.shape)}"
        )
    labels = labels.to(images.device, torch.int64)
    check_classes(int(labels.min()), int(labels.max()), num_classes)
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
    check_logits(answer, 1)
    copies = given._version > 0  # counts changes in place
    plain = not copies and answer.dtype == weight.dtype == torch.float32
    return (model if plain else Logits(model, weight.dtype, copies)), answer.shape[1]


def as_tensor(name: str, values: Any) -> Tensor:
    """Values as a tensor; raises UsageError for what is no array of numbers."""
    try:
        return values if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{name}: expected a tensor, an array or a list of numbers, got {type(values).__name__}"
        ) from error
