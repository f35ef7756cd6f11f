"""Bounds of units by branch and bound, against points of the region and the mixed-integer optimum."""

from __future__ import annotations

import math
import time

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
    """Where the sign stays open; of others it is all that is asked."""
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
