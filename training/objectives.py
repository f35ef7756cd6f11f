"""What a batch is trained on: functions of (model, images, labels) that return a loss and the logits it scored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


def standard(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy on the clean batch."""
    logits = model(images)
    return torch.nn.functional.cross_entropy(logits, labels), logits
