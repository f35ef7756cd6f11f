"""Bounds of units by branch and bound, against points of the region and the mixed-integer optimum."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy
import pytest
import torch
from torch import nn

from testing import exact, exact_units
from testing.exact import exact_robustness
from testing.exact_bounds import Region, UnitBounds, negative
from testing.exact_cones import ConeBounds
from testing.exact_dual import Dual
from testing.exact_network import Network
from testing.exact_program import EXACT, Program
from testing.exact_units import BranchedBounds, has_layers
from tests.testing.relu_networks import NETS, SHAPE, inside, made, values
from threat_specification import Linf


def heights(bounds: UnitBounds) -> numpy.ndarray:
    """Of the triangles above the ReLUs of the last block."""
    low, high = bounds.before[max(bounds.before)]
    return numpy.where((low < 0) & (high > 0), -low * high / numpy.maximum(high - low, 1e-12), 0)


@pytest.mark.parametrize("name", NETS)
def test_bounds_hold_all_points_and_come_near_the_optimum(name: str) -> None:
    """Only for units whose sign stays open; of others it is all that is asked."""
    network, region, plain, _ = made(name)
    tight = BranchedBounds.of(network, region, 1000)
    block = max(tight.before)
    low, high = tight.before[block]
    for point in inside(region, 400):
        z = values(network, point)[block - 1]
        assert (low <= z).all() and (z <= high).all()
    program, value = Program(plain), network.blocks[block].before
    unknown = numpy.flatnonzero((low < 0) & (high > 0))
    assert len(unknown) > 2 and heights(tight).sum() < 0.9 * heights(plain).sum()
    for unit in unknown[:3]:
        for sign, one in ((1, value.rows([unit])), (-1, negative(value.rows([unit])))):
            best = program.largest(one, -math.inf, 60, EXACT).margin
            found, before = ((sign * pair[sign > 0][unit]) for pair in (tight.before[block], plain.before[block]))
            assert best - 1e-6 <= found <= best + 0.25 * (before - best) + 1e-3


@pytest.mark.parametrize("name", NETS)
def test_divisions_and_half_spaces_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, region, _, _ = made(name)
    box = Region(region.lower, region.upper, region.rows[:0], region.limits[:0])
    sums = {}
    for rounds, within in ((0, region), (20, region), (20, box)):
        monkeypatch.setattr(exact_units, "ROUNDS", rounds)
        first = UnitBounds.of(network, box)  # so that the layers before have the same bounds
        bounds = BranchedBounds(network, within, {1: first.before[1]}, first.after[:2], 0)
        bounds.before[2] = bounds._pair(2)
        sums[rounds, within is box] = heights(bounds).sum()
    assert sums[20, False] < sums[0, False] - 1e-3
    assert name == "convolutions" or sums[20, False] < sums[20, True] - 1e-3


def test_units_in_groups_have_the_bounds_of_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    network, region, _, _ = made("perceptron")
    together = BranchedBounds.of(network, region)
    monkeypatch.setattr(exact_units, "NUMBERS", 1)
    alone = BranchedBounds.of(network, region)
    for one, other in zip(together.before[2], alone.before[2], strict=True):
        assert one == pytest.approx(other, rel=0.02, abs=1e-3)


def test_where_time_ends_the_largest_triangles_have_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    network, region, plain, _ = made("perceptron")
    spent = BranchedBounds.of(network, region, 0, time.monotonic() - 1)
    assert all((one == other).all() for one, other in zip(spent.before[2], plain.before[2], strict=True))
    monkeypatch.setattr(exact_units, "NUMBERS", 1)
    now, real = [0.0], BranchedBounds._divided

    def divided(*given: object) -> numpy.ndarray:
        now[0] += 1
        return real(*given)

    monkeypatch.setattr(BranchedBounds, "_divided", divided)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    some = BranchedBounds.of(network, region, 0, 3)
    changed = (some.before[2][0] != plain.before[2][0]) | (some.before[2][1] != plain.before[2][1])
    before = heights(plain)
    assert 1 < changed.sum() < (before > 0).sum()
    assert before[changed].min() > before[~changed].max()


def test_bounds_that_are_no_numbers_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    network, region, plain, _ = made("convolutions")
    real = Dual.bounds
    monkeypatch.setattr(Dual, "bounds", lambda *given: real(*given) * math.nan)
    found = BranchedBounds.of(network, region)
    assert all((one == other).all() for one, other in zip(found.before[2], plain.before[2], strict=True))


def test_exact_answers_take_them_for_layers_of_relus_and_cones_for_maxima(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    pooled = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4)
    )
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))
    used = list[type]()
    for kind in (BranchedBounds, ConeBounds):
        real = kind.of
        monkeypatch.setattr(exact, kind.__name__, type(kind.__name__, (kind,), {
            "of": classmethod(lambda cls, *given, real=real: used.append(real.__self__) or real(*given))}))  # fmt: skip
    images = torch.rand(1, *SHAPE)
    for net, expected in ((pooled, ConeBounds), (plain, BranchedBounds)):
        net.eval().requires_grad_(False)
        for programs, kinds in ((0, []), (100, [expected])):
            used.clear()
            exact_robustness(net, images, net(images).argmax(1), Linf(), 0.4, 0.4, 2, attacks=(), programs=programs)
            assert used == kinds
    one_layer = nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 4)).eval()
    assert not has_layers(Network.read(one_layer, SHAPE)) and has_layers(Network.read(plain, SHAPE))


def dead_behind_dead() -> Network:
    """A network whose first channel is 0 everywhere, and so is the unit that sees that one alone."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    ).requires_grad_(False)
    for layer, dead in ((net[0], slice(None)), (net[2], slice(1, None))):
        layer.weight[0, dead] = 0
        layer.bias[0] = 0
    return Network.read(net.eval(), SHAPE)


def test_units_that_are_zero_everywhere_keep_their_room() -> None:
    """Without it the program takes their entries for out of scale, and refuses the whole image."""
    network, region = (
        dead_behind_dead(),
        Region(numpy.zeros(36), numpy.full(36, 0.4), numpy.zeros((0, 36)), numpy.zeros(0)),
    )
    bounds = BranchedBounds.of(network, region)
    margins = network.logits.rows([1]).plus(network.logits.rows([0]), -1)
    assert Program(bounds).is_in_scale(margins)
    low, high = bounds.before[2]
    assert (low[:16] <= -1e-9).all() and (high[:16] >= 1e-9).all() and (low <= high).all()
    plain = UnitBounds.of(network, region)
    assert heights(bounds).sum() < heights(plain).sum()


def test_units_of_the_image_alone_are_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers see the image here, side by side: their place among the blocks does not matter."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(36, 9), nn.Linear(36, 8)
            self.past, self.last = nn.Linear(9, 4), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = torch.relu(self.first(x.flatten(1)))
            return self.last(torch.relu(self.second(x.flatten(1)))) + self.past(first)

    torch.manual_seed(0)
    network = Network.read(Beside().eval().requires_grad_(False), SHAPE)
    region = Region(numpy.zeros(36), numpy.ones(36), numpy.ones((1, 36)), numpy.full(1, 3.0))
    monkeypatch.setattr(exact_units, "Units", None)
    bounds = BranchedBounds.of(network, region, 100)
    assert set(bounds.before) == {1, 2} and (bounds.before[2][0] < 0).any() and not has_layers(network)


def test_what_float32_claims_is_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    network, region, _, _ = made("convolutions")
    real = Dual.to

    def too_low(dual: Dual, dtype: torch.dtype) -> Dual:
        found = real(dual, dtype)
        return replace(found, constant=found.constant - 10)

    monkeypatch.setattr(Dual, "to", too_low)
    bounds = BranchedBounds.of(network, region)
    for point in inside(region, 400):
        for z, (low, high) in zip(values(network, point), bounds.before.values(), strict=True):
            assert (low <= z).all() and (z <= high).all()


def test_ascents_and_divisions_keep_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    network, region, plain, _ = made("perceptron")
    calls, real, value = list[int](), Dual.backward, network.blocks[2].before
    plain.before.pop(2)
    dual = Dual.of(plain, value)
    monkeypatch.setattr(Dual, "backward", lambda *given: calls.append(1) or real(*given))
    with torch.no_grad():
        for left, least, most in ((-1, 2, 2), (math.inf, 100, math.inf)):
            calls.clear()
            spent = BranchedBounds(network, region, end=time.monotonic() + left)
            spent._divided(dual, torch.arange(4))
            assert least <= len(calls) <= most  # the first bounds, in float32 and in float64
    units = exact_units.Units(dual, torch.arange(4), time.monotonic() - 1)
    calls.clear()
    units.divide()
    assert len(calls) == 1 + 1 + 2 + 1  # gaps, both signs of the ReLUs that are tried, and as above
