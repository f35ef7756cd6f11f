"""VGG (Simonyan and Zisserman 2015) for small images, with batch normalisation and a single linear layer."""

from __future__ import annotations

from torch import nn

from foundations.images import ImageSpec
from models.initialize import he_normal

# Depth -> number of convolutions in each of the five stages.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


def build(spec: ImageSpec, depth: int) -> nn.Module:
    layers: list[nn.Module] = []
    inputs, side = spec.shape[0], min(spec.shape[1:])
    for count, width in zip(STAGES[depth], WIDTHS, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        if side >= 2:  # images smaller than 32x32 have only one pixel per side before the last pooling
            layers.append(nn.MaxPool2d(2))
            side //= 2
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, spec.num_classes)]
    return he_normal(nn.Sequential(*layers))
