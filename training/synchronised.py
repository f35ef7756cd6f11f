"""Batch normalisation over the whole batch, wherever its parts are: with several processes as with one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm

from foundations.errors import UsageError


def has_batch_norm(network: nn.Module) -> bool:
    """True if the answers for an image depend, in training, on the other images of its part of a batch."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def synchronise(network: nn.Module, device: torch.device) -> None:
    """Give the layers of a network batch normalisation over the parts of all processes; all names stay.

    Each pass in training mode is then a collective operation. On a GPU plain layers become torch's; it has none for
    CPUs, and none that keep what timm's layers do after normalisation. Raises UsageError for any other layer: it would
    take the statistics of a part.
    """
    for name, module in network.named_modules():
        if not isinstance(module, _BatchNorm) or isinstance(module, SYNCHRONISED):
            continue
        # The same attributes, with another forward pass.
        if type(module) in (BatchNorm1d, BatchNorm2d, BatchNorm3d):
            if device.type == "cuda":
                module.__class__ = nn.SyncBatchNorm
                module.__dict__["process_group"] = None  # its only attribute of its own: all processes
            else:
                module.__class__ = WholeBatchNorm
        elif type(module).__name__ == "BatchNormAct2d" and type(module).__module__.startswith("timm."):
            module.__class__ = WholeBatchNormAct
        else:
            raise UsageError(
                f"{name}: batch normalisation over several processes knows no {type(module).__name__}; train in one "
                "process, or give the model torch's layers"
            )


class GlobalSum(torch.autograd.Function):
    """The sum of a tensor over all processes; each gets the sum of their gradients."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


class WholeBatchNorm(_BatchNorm):
    """Batch normalisation (Ioffe and Szegedy 2015) with means and variances over the parts of all processes.

    Statistics are float32. The mean is taken first and then the variance around it, as one process does.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch normalisation: expected at least [B,C], got {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        dims, shape = [0, *range(2, input.dim())], [1, -1, *[1] * (input.dim() - 2)]
        values = input.float()
        number = values.new_tensor([values.numel() // values.shape[1]])
        sums = GlobalSum.apply(torch.cat([values.sum(dims), number]))
        number, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        centred = values - mean.view(shape)
        variance = GlobalSum.apply(centred.square().sum(dims)) / number
        self._remember(mean.detach(), variance.detach() * number / (number - 1).clamp_min(1))
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate = 1 / self.num_batches_tracked.float() if self.momentum is None else self.momentum
        with torch.no_grad():
            self.running_mean.mul_(1 - rate).add_(rate * mean)
            self.running_var.mul_(1 - rate).add_(rate * variance)


class WholeBatchNormAct(WholeBatchNorm):
    """As `WholeBatchNorm`, followed by the dropping and the activation that are parts of timm's BatchNormAct2d."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


SYNCHRONISED = (nn.SyncBatchNorm, WholeBatchNorm)  # layers with the same statistics in all processes
