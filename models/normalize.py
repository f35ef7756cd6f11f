"""The first layer of every model, so that pixels are in [0, 1] everywhere else and an epsilon means one thing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundations.images import ImageSpec


class Normalize(nn.Module):
    """(x - mean) / std per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Classifier(nn.Module):
    """Normalisation, then a network: [B,C,H,W] pixels in [0, 1] -> [B,K] logits."""

    def __init__(self, normalize: Normalize, network: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalize(images))


def with_normalization(network: nn.Module, spec: ImageSpec) -> Classifier:
    """A classifier on pixels in [0, 1] with the statistics of a data set."""
    return Classifier(Normalize(spec.mean, spec.std), network)
