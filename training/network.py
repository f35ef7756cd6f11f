"""Tools to run a network in training: mixed precision, memory layout, distributed training, moving averages."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from foundations.modes import buffers_kept
from training.synchronised import SYNCHRONISED

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision(nn.Module):
    """A network [B,C,H,W] float32 -> [B,K] float32 with passes in 16 bits or in the channels-last memory layout.

    Only the passes through the network are in 16 bits; losses, attacks and threats stay in float32.
    """

    def __init__(self, network: nn.Module, precision: str = "fp32", channels_last: bool = False) -> None:
        super().__init__()
        self.network, self.dtype = network, PRECISIONS[precision]
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        network.to(memory_format=self.layout)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.network(images.contiguous(memory_format=self.layout)).float()


def distributed(model: nn.Module, device: torch.device, some_idle: bool = False) -> nn.Module:
    """Wrap the model in DistributedDataParallel, which does not synchronise buffers: `broadcast_buffers` does.

    some_idle   the model does not use some of its weights, as `has_idle_weights` finds; they get no gradient
    """
    wrapper: Any = nn.parallel.DistributedDataParallel
    # The name of the option depends on the version of torch.
    names = inspect.signature(wrapper).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    ids = [device] if device.type == "cuda" else None
    return wrapper(model, device_ids=ids, find_unused_parameters=some_idle, **{option: False})


def has_idle_weights(model: nn.Module, images: Tensor) -> bool:
    """True if a pass over a few images leaves out some weights, as in some published networks.

    It changes no weight and no buffer, but draws random numbers where the network does, and leaves it in training mode.
    """
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    with buffers_kept(model):
        gradients = torch.autograd.grad(model(images).sum(), weights, allow_unused=True)
    return any(gradient is None for gradient in gradients)


def settle_buckets(model: nn.Module, images: Tensor) -> None:
    """Have DistributedDataParallel group the gradients for good, by a pass over a few images.

    It changes no weight and no buffer, but draws random numbers where the network does, and leaves it in training mode.

    It groups them anew after the first backward pass of a process, by the order in which they came. Without this pass
    that would be the first step of a run, or the first one after a restart: the sums of three and more processes would
    then be taken in another order than in the same step of an undisturbed run. A collective operation.
    """
    model.train()
    with buffers_kept(model):
        (model(images) * 0).sum().backward()
    model.zero_grad(set_to_none=True)


def plain(model: nn.Module) -> nn.Module:
    """The model without DistributedDataParallel, whose passes do not communicate."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and buffers, which starts with the values at the first update.

    After n updates the decay is min(decay, (1 + n) / (10 + n)): else a short training would leave the first weights.
    Whole numbers, such as tables of positions, are taken over, since an average of them is rounded.
    """

    @torch.no_grad()
    def average(averages: Any, values: Any, count: Any) -> None:
        if not averages[0].is_floating_point():
            for mean, value in zip(averages, values, strict=True):
                mean.copy_(value)
            return
        share = 1 - ((1 + count) / (10 + count)).clamp_max(decay)  # on the device, which the host does not wait for
        ways = torch._foreach_sub(values, averages)
        torch._foreach_mul_(ways, share)
        torch._foreach_add_(averages, ways)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)


def unequal_buffers(network: nn.Module, equal: tuple[type[nn.Module], ...] = ()) -> list[Tensor]:
    """The floating-point buffers that may come to differ between processes.

    equal   modules whose buffers are the same everywhere, beside batch normalisation over all processes
    """
    modules = [module for module in network.modules() if not isinstance(module, (*SYNCHRONISED, *equal))]
    buffers = [buffer for module in modules for buffer in module.buffers(recurse=False)]
    return [buffer for buffer in buffers if buffer.is_floating_point()]


def broadcast_buffers(buffers: list[Tensor]) -> None:
    """Copy the buffers of the first process to all others.

    Then all processes evaluate, attack and save the same network. A collective operation: one broadcast for all
    buffers together, and none if there are none.
    """
    if not buffers:
        return
    joined = torch.cat([buffer.flatten() for buffer in buffers])
    torch.distributed.broadcast(joined, src=0)
    for buffer, values in zip(buffers, joined.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


def size_of(network: nn.Module) -> float:
    """l2 norm of all weights together; not finite if any weight is not finite."""
    return float(torch.stack([weight.detach().float().norm() for weight in network.parameters()]).norm())
