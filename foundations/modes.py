"""Evaluation of a model that leaves the model unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from foundations.errors import UsageError, kind_of


class ExpectationOverTransformation(nn.Module):
    """A randomised model, replaced by the mean of its logits over several passes (Athalye et al. 2018)."""

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__()
        self.model, self.passes = model, passes

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.model(images) for _ in range(self.passes)]).mean(0)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model in eval mode, with `frozen` weights, for the duration of a block; afterwards restore every mode.

    Raises UsageError for what is no module.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"model: expected a torch.nn.Module, got {kind_of(model)}; wrap it in one whose forward returns logits"
        )
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with frozen(model):
            yield model
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let weights require no gradients for the duration of a block, in which attacks ask for those of the images alone.

    Otherwise the backward pass of a compiled model computes all of them. The parameters stay the same objects, so that
    hooks on them, such as those of DistributedDataParallel, stay as well.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore all buffers after a block, such as the statistics of batch normalisation."""
    kept = [buffer.detach().clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), kept, strict=True):
                buffer.copy_(before)
