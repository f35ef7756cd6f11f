"""LeNet-5 (LeCun et al. 1998), with ReLU and max-pooling as is usual today."""

from __future__ import annotations

from torch import nn

from foundations.images import ImageSpec


def build(spec: ImageSpec) -> nn.Module:
    channels, height, width = spec.shape
    rows, columns = (height // 2 - 4) // 2, (width // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * rows * columns, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, spec.num_classes),
    )
