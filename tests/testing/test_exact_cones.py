"""Bounds of units that see a part of the image, against points of the box."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn

from testing import exact_cones
from testing.exact import exact_robustness
from testing.exact_bounds import Region, UnitBounds, negative
from testing.exact_cones import GAP, SLACK, ConeBounds, cone, has_cones
from testing.exact_network import Network
from testing.exact_program import EXACT, Program
from threat_specification import Linf

SHAPE = (1, 8, 8)


class Shortcut(nn.Module):
    """A convolution beside its own input, so that units depend on the image by two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(torch.relu(x)) + x


BODIES: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)),
    "max pooling": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, padding=1), nn.Conv2d(3, 8, 2)),
    "shortcut": Shortcut,
}  # fmt: skip


def made(name: str) -> tuple[nn.Sequential, Network]:
    """A network of 128 units behind a body, which gives their inputs."""
    torch.manual_seed(5)
    net = nn.Sequential(BODIES[name](), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).eval().requires_grad_(False)
    return net, Network.read(net, SHAPE)


def region(radius: float) -> Region:
    centre = numpy.random.default_rng(0).random(64)
    return Region((centre - radius).clip(0, 1), (centre + radius).clip(0, 1), numpy.zeros((0, 64)), numpy.zeros(0))


def climbed(body: nn.Module, box: Region, sign: int) -> numpy.ndarray:
    """The largest value (sign 1) or smallest of each unit's input that ascent from 24 corners finds."""
    lower, upper = (torch.from_numpy(side).float().view(SHAPE) for side in (box.lower, box.upper))
    generator, found = torch.Generator().manual_seed(1), torch.full((128,), -torch.inf)
    for _ in range(24):
        x = torch.where(torch.rand(128, *SHAPE, generator=generator) < 0.5, upper, lower)  # an image for each unit
        for step in range(12):
            x.requires_grad_(True)
            values = sign * body(x).flatten(1).diagonal()
            found = torch.maximum(found, values.detach())
            (gradient,) = torch.autograd.grad(values.sum(), x)
            length = (upper - lower) * min(1, 0.5 ** (step - 3))
            x = (x.detach() + gradient.sign() * length).clamp(lower, upper)
    return sign * found.double().numpy()


@pytest.mark.parametrize("name", BODIES)
def test_bounds_hold_all_points_and_are_those_of_the_whole_network(name: str) -> None:
    net, network = made(name)
    box = region(0.03)
    plain, tight = UnitBounds.of(network, box), ConeBounds.of(network, box, 10_000)
    last = len(network.blocks) - 1
    low, high = tight.before[last]
    least, most = climbed(net[0], box, -1), climbed(net[0], box, 1)
    assert (most <= high + 1e-5).all() and (least >= low - 1e-5).all()
    seen = (low < 0) & (high > 0)  # of the others the sign is all that is asked
    before = plain.before[last]
    assert (high - low)[seen].sum() < 0.98 * (before[1] - before[0])[seen].sum()
    program, value = Program(plain), network.blocks[last].before
    narrow = numpy.flatnonzero(seen & (network.seen(last).sum(1) <= 32))
    assert len(narrow) >= 2
    for row in narrow[:2]:
        upper, lower = value.rows([row]), negative(value.rows([row]))
        widened = SLACK / 2 * max(-before[0][row], before[1][row])
        for bound, own, one in ((high[row], before[1][row], upper), (-low[row], -before[0][row], lower)):
            optimum = program.largest(one, -numpy.inf, 60, EXACT).margin
            assert min(own, optimum + widened) <= bound <= optimum + GAP * abs(optimum) + 1e-3


class Deep(nn.Module):
    """Three layers whose units have cones, with a shortcut and overlapping, padded maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.pool, self.third = nn.MaxPool2d(2, stride=2, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        x = self.pool(x)
        return torch.relu(self.third(x))


@pytest.mark.parametrize("seed", [0, 2])
def test_bounds_from_bounds_hold_in_a_deep_network(seed: int) -> None:
    """With half-spaces, and pixels that are 0 in the whole region."""
    torch.manual_seed(seed)
    net = nn.Sequential(Deep(), nn.Flatten(), nn.Linear(50, 3)).eval().requires_grad_(False)
    network, generator = Network.read(net, SHAPE), numpy.random.default_rng(seed)
    centre, rows = generator.random(64), generator.normal(size=(20, 64))
    centre[:20] = 0
    lower, upper = (centre - 0.2).clip(0, 1), (centre + 0.2).clip(0, 1)
    upper[:12] = 0
    box = Region(lower, upper, rows, rows @ centre + 0.2)
    plain, tight = UnitBounds.of(network, box), ConeBounds.of(network, box, 10_000)
    assert tight.open_units < plain.open_units and tight.programs < 9_990
    points = numpy.where(generator.random((3000, 64)) < 0.5, lower, upper)
    points = centre + (points - centre) * generator.random((3000, 1)) ** 0.3
    beyond = ((points - centre) @ rows.T / 0.2).max(1)
    points = centre + (points - centre) / beyond.clip(1)[:, None]  # onto the half-space that is passed most
    known = [points.T]
    for number, block in enumerate(network.blocks[1:], start=1):
        inputs = block.before.constant[:, None] + sum(part @ known[k] for k, part in block.before.parts.items())
        low, high = tight.before[number]
        assert (inputs <= high[:, None] + 1e-6).all() and (inputs >= low[:, None] - 1e-6).all()
        if block.groups is None:
            known.append(inputs.clip(0))
        else:
            known.append(numpy.stack([inputs[group[group >= 0]].max(0) for group in block.groups]))


def test_a_cone_is_what_a_unit_depends_on() -> None:
    network = made("convolutions")[1]
    value = network.blocks[2].before.rows([27])  # row 3, column 3
    one = cone(UnitBounds.of(network, region(0.1)), value)
    assert len(one.bounds.region.lower) == 25 == network.seen(2)[27].sum()
    assert [block.size for block in one.bounds.network.blocks][1] <= 27
    assert has_cones(network)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 3))
    assert not has_cones(Network.read(wide, SHAPE))


def test_programs_and_time_are_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    network, calls = made("convolutions")[1], []
    monkeypatch.setattr(exact_cones, "cone", lambda *given: calls.append(given) or cone(*given))
    for programs, end, expected in ((0, 1e12, 0), (10, 1e12, 5), (10, 0.0, 0)):
        calls.clear()
        ConeBounds.of(network, region(0.15), programs, end)
        assert len(calls) == expected


def test_exact_answers_use_cones_where_bounds_leave_units_open(monkeypatch: pytest.MonkeyPatch) -> None:
    net, _ = made("max pooling")
    images, calls = torch.from_numpy(numpy.random.default_rng(0).random((1, *SHAPE))).float(), []
    monkeypatch.setattr(exact_cones, "cone", lambda *given: calls.append(given) or cone(*given))
    answers = {}
    for programs in (0, 1000):
        answers[programs] = exact_robustness(
            net, images, net(images).argmax(1), Linf(), 0.04, seconds=60, attacks=(), programs=programs
        )
        assert bool(calls) == bool(programs)
    assert bool(answers[0].robust) == bool(answers[1000].robust)
    assert answers[1000].by[0] in ("bounds", "program")


def test_a_cone_without_pixels() -> None:
    """The cone of a unit that sees one channel alone, which is 0 everywhere."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 1)
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 4)).eval()
    net.requires_grad_(False)
    first.weight[0], first.bias[0], second.weight[0, 1:], second.bias[0] = 0, 0, 0, 0
    images = torch.rand(1, 1, 6, 6)
    found = exact_robustness(net, images, net(images).argmax(1), Linf(), 0.2, 0.2, attacks=())
    assert bool(found.robust) and found.by == ["program"]
