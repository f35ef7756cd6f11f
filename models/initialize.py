"""Random initialisation of weights."""

from __future__ import annotations

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
