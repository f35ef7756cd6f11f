"""Plain networks named by their layers: lenet_300_100 (a perceptron), conv_8_8 (convolutions)."""

from __future__ import annotations

import math

from torch import nn

from foundations.images import ImageSpec
from models.initialize import he_normal


def sizes(name: str) -> list[int]:
    """The numbers of a name: lenet_300_100 -> [300, 100]."""
    return [int(part) for part in name.split("_")[1:]]


def build_perceptron(spec: ImageSpec, name: str) -> nn.Module:
    """Linear layers of these sizes with ReLU, and one for the classes (lenet_300_100: LeCun et al. 1998)."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = math.prod(spec.shape)
    for outputs in sizes(name):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        inputs = outputs
    return he_normal(nn.Sequential(*layers, nn.Linear(inputs, spec.num_classes)))


def build_convolutions(spec: ImageSpec, name: str) -> nn.Module:
    """3x3 convolutions with these numbers of filters and ReLU, the mean over the image, and one linear layer."""
    layers: list[nn.Module] = []
    inputs = spec.shape[0]
    for outputs in sizes(name):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        inputs = outputs
    return he_normal(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, spec.num_classes)))
