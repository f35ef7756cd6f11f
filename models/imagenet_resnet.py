"""Residual networks for large images (He et al. 2016), of any depth and width of the first layer.

Depths 200 and 269 are those of He et al. 2016 (arXiv 1603.05027) and Zhang et al. 2019 (arXiv 1812.01187).
"""

from __future__ import annotations

from torch import nn

from foundations.errors import UsageError
from foundations.images import ImageSpec

# Depth -> blocks of each stage; up to 34 blocks have two convolutions, from 50 on three.
BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}
BASIC = 34  # largest depth of blocks with two convolutions
STANDARD_WIDTH = 64


def build(spec: ImageSpec, depth: int, width: int = STANDARD_WIDTH) -> nn.Module:
    """A network with `width` filters in the first layer; with 64 it is torchvision's, weight by weight."""
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    if spec.shape[0] != 3:
        raise UsageError(f"model 'imagenet_resnet_{depth}' takes colour images, got {spec.shape[0]} channels")
    block = BasicBlock if depth <= BASIC else Bottleneck
    network = ResNet(block, list(BLOCKS[depth]), num_classes=spec.num_classes)
    if width == STANDARD_WIDTH:
        return network
    network.inplanes = width
    network.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    for stage, blocks in enumerate(BLOCKS[depth]):
        made = network._make_layer(block, width * 2**stage, blocks, stride=1 if stage == 0 else 2)
        setattr(network, f"layer{stage + 1}", made)
    network.fc = nn.Linear(8 * width * block.expansion, spec.num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
