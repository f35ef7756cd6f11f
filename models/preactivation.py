"""Residual networks with normalisation before each convolution (He et al. 2016, arXiv 1603.05027).

Wide residual networks (Zagoruyko and Komodakis 2016), and PreActResNet-18, a usual network of adversarial training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundations.images import ImageSpec
from models.initialize import he_normal


class Block(nn.Module):
    """A residual block: normalisation, ReLU and 3x3 convolution, twice.

    If the shape changes, the shortcut is a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.norm1(x))
        out = self.conv2(torch.relu(self.norm2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


def build_wide(spec: ImageSpec, depth: int, factor: int) -> nn.Module:
    """Build WideResNet-depth-factor, with depth = 6n + 4."""
    return _stages(spec, 16, [16 * factor, 32 * factor, 64 * factor], (depth - 4) // 6)


def build_preactresnet(spec: ImageSpec, depth: int) -> nn.Module:
    """Build PreActResNet-18: four stages of two blocks."""
    return _stages(spec, 64, [64, 128, 256, 512], 2)


def _stages(spec: ImageSpec, stem: int, widths: list[int], blocks: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(spec.shape[0], stem, 3, padding=1, bias=False)]
    inputs = stem
    for stage, outputs in enumerate(widths):
        for block in range(blocks):
            layers.append(Block(inputs, outputs, stride=2 if stage > 0 and block == 0 else 1))
            inputs = outputs
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return he_normal(nn.Sequential(*layers, nn.Linear(inputs, spec.num_classes)))
