"""Random initialisation of weights."""

from __future__ import annotations

import torch
from torch import nn


def he_normal(network: nn.Module) -> nn.Module:
    """Initialise every convolution and linear layer as in He et al. 2015, with zero biases; returns the network.

    With PyTorch's default initialisation, whose variance is smaller by a factor of 6, the loss of plain networks does
    not decrease for many epochs.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


@torch.no_grad()
def keep_interval_widths(network: nn.Module) -> None:
    """Scale the weights of every convolution and linear layer to a mean size of 2 / inputs of a unit; biases become 0.

    Then the intervals of certified training keep their width, on average, through a layer and the ReLU behind it, which
    halves it. Wider ones grow with every layer until nothing is learnt (Shi et al. 2021, arXiv 2103.17268, who draw
    weights of that size; here those that were drawn are scaled).
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight *= 2 / (module.weight[0].numel() * module.weight.abs().mean())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
