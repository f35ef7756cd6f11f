"""Small networks of ReLUs, a region that half-spaces cut, and points of it, for the tests of exact answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import torch
from torch import Tensor, nn

from testing.exact_bounds import Region, UnitBounds
from testing.exact_network import Network, Value

SHAPE = (1, 6, 6)


class Shortcut(nn.Module):
    """Units that depend on the image and on units before, as do the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.down, self.last, self.past = nn.Linear(36, 18), nn.Linear(18, 4), nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.first(x))
        second = torch.relu(self.second(first).flatten(1) + self.down(x.flatten(1)))
        return self.last(second) + self.past(first.flatten(1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)),
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(18, 4)),
    "shortcut": Shortcut,
}  # fmt: skip


def made(name: str, half_spaces: int = 3) -> tuple[Network, Region, UnitBounds, Value]:
    """A network, a box that half-spaces cut, the bounds of its units there, and margins over the first class."""
    torch.manual_seed(3)
    net = NETS[name]().eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter *= 2
    network = Network.read(net, SHAPE)
    random = numpy.random.default_rng(1)
    centre, rows = random.random(36), random.normal(size=(half_spaces, 36))
    limits = rows @ centre + 0.1 * abs(rows).sum(1)
    region = Region((centre - 0.3).clip(0, 1), (centre + 0.3).clip(0, 1), rows, limits)
    margins = network.logits.rows([1, 2, 3]).plus(network.logits.rows([0, 0, 0]), -1)
    return network, region, UnitBounds.of(network, region), margins


def inside(region: Region, count: int) -> numpy.ndarray:
    """Points of the region, many of them at corners of its box."""
    random = numpy.random.default_rng(2)
    points = numpy.where(random.random((count, 36)) < 0.5, region.lower, region.upper)
    loose = random.random((count, 36)) < random.random((count, 1))
    points = numpy.where(loose, random.uniform(region.lower, region.upper, (count, 36)), points)
    return points[(points @ region.rows.T <= region.limits).all(1)]


def values(network: Network, point: numpy.ndarray) -> list[numpy.ndarray]:
    """The inputs of the ReLUs of each block at a point."""
    known, found = [point], []
    for block in network.blocks[1:]:
        assert block.before is not None
        found.append(block.before.at(known))
        known.append(numpy.maximum(found[-1], 0))
    return found


def after(network: Network, point: numpy.ndarray) -> list[numpy.ndarray]:
    return [numpy.maximum(row, 0) for row in values(network, point)]
