"""A model that gives every process the answers and gradients of the first one.

Processes that share out anchors exchange something in every projection, and how often depends on the points that the
attacks reach. Gradients that differ in their last bits would lead processes to different points, and then to
exchanges that do not belong together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class InLockstep(nn.Module):
    """The model, called by all processes with the same images [B,C,H,W]; a collective operation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return _AnswerOfFirst.apply(self.model(_GradientOfFirst.apply(images)))


class _AnswerOfFirst(torch.autograd.Function):
    """The first process's value; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _of_first(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _GradientOfFirst(torch.autograd.Function):
    """The value passes; the first process's gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _of_first(gradient)


def _of_first(value: Tensor) -> Tensor:
    value = value.detach().clone(memory_format=torch.contiguous_format)
    distributed.broadcast(value, src=0)
    return value
