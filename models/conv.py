"""A small plain network without batch normalisation, so that its output for an image never depends on the batch."""

from __future__ import annotations

from torch import nn

from foundations.images import ImageSpec
from models.initialize import he_normal


def build(spec: ImageSpec) -> nn.Module:
    channels, height, width = spec.shape
    rows, columns = -(-height // 4), -(-width // 4)  # two convolutions of stride 2
    network = nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * rows * columns, 128),
        nn.ReLU(),
        nn.Linear(128, spec.num_classes),
    )
    return he_normal(network)
