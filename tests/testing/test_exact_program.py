"""The program of exact answers and its bounds, against forward passes, points of the set and another solver."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy
import pytest
import torch
from scipy import sparse
from scipy.optimize import linprog
from torch import Tensor, nn

from testing import exact_program
from testing.exact import exact_robustness
from testing.exact_bounds import Region, UnitBounds, negative
from testing.exact_network import Network, Value
from testing.exact_program import EXACT, Program
from threat_specification import Linf

SHAPE = (1, 6, 6)


def no_half_spaces(lower: numpy.ndarray, upper: numpy.ndarray) -> Region:
    return Region(lower, upper, numpy.zeros((0, len(lower))), numpy.zeros(0))


def box() -> Region:
    return no_half_spaces(numpy.zeros(36), numpy.ones(36))


class Normalised(nn.Module):
    """Normalisation, a shortcut, and functions in place of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.3]).view(-1, 1, 1))
        self.first, self.second = nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.last = nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first((x - self.mean) / 0.5)
        x = torch.relu(self.second(nn.functional.relu(x)) + x)
        return self.last(nn.functional.avg_pool2d(x, 1).flatten(1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(),
                                        nn.Linear(6, 4)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU(),
                                         nn.AvgPool2d(2, padding=1), nn.Dropout(), nn.Flatten(), nn.Linear(12, 4)),
    "max pooling": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 4)),
    "overlapping, padded, of negative values": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, stride=2, padding=1), nn.Identity(), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(2, 4), nn.BatchNorm1d(4)),
    "shortcut": Normalised,
}  # fmt: skip


def made(name: str) -> nn.Module:
    """A net with random weights and random statistics of batch normalisation."""
    torch.manual_seed(3)
    net = NETS[name]().eval()
    for layer in net.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
    return net


@pytest.mark.parametrize("name", NETS)
def test_the_program_reproduces_logits(name: str) -> None:
    """With units free over the whole box, and then the image fixed: each unit's constraints leave its true value."""
    net = made(name)
    network = Network.read(net, SHAPE)
    program = Program(UnitBounds.of(network, box()))
    assert program.binaries >= 5
    for seed in range(3):
        image = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(seed))
        program.low[0] = program.high[0] = image.flatten().double().numpy()
        logits = net.double()(image.double()).detach()[0]
        for sign in (1, -1):  # the largest and the smallest value
            row = network.logits.rows([1]).plus(network.logits.rows([0]), -1)
            row = row if sign == 1 else network.logits.rows([0]).plus(network.logits.rows([1]), -1)
            solved = program.largest(row, -math.inf, 20, EXACT)
            assert solved.margin == pytest.approx(sign * float(logits[1] - logits[0]), abs=1e-5)


@pytest.mark.parametrize("programs", [0, 100])
@pytest.mark.parametrize("name", NETS)
def test_no_point_is_beyond_a_bound(name: str, programs: int) -> None:
    net, generator = made(name).double(), numpy.random.default_rng(0)
    network = Network.read(net, SHAPE)
    centre, normals = generator.random(36), generator.normal(size=(5, 36))
    lower, upper = (centre - 0.1).clip(0, 1), (centre + 0.1).clip(0, 1)
    region = Region(lower, upper, normals, normals @ centre + 0.1)
    points = lower + (upper - lower) * generator.random((4000, 36))
    points = centre + (points - centre) * generator.random((4000, 1)) ** 0.3
    points = points[(points @ normals.T <= region.limits).all(1)]
    assert len(points) > 300
    with torch.no_grad():
        reached = net(torch.from_numpy(points).view(-1, *SHAPE)).numpy().max(0)
    bounds = UnitBounds.of(network, region, programs)
    bounds.programs = programs
    above = bounds.largest(network.logits, -math.inf)
    assert (reached <= above).all()
    assert (above <= bounds.intervals(network.logits)[1] + 1e-6).all()
    exact = [Program(bounds).largest(network.logits.rows([k]), -math.inf, 20, EXACT) for k in range(4)]
    assert (reached <= [one.bound + 1e-6 for one in exact]).all()
    assert all(one.bound <= bound + 1e-6 for one, bound in zip(exact, above, strict=True))


@pytest.mark.parametrize("name", ["perceptron", "max pooling"])
def test_few_half_spaces_at_a_time_are_all_of_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They decide as the program with all of 40 does just below its optimum and just above; its point is inside."""
    network, generator = Network.read(made(name), SHAPE), numpy.random.default_rng(1)
    centre, normals = numpy.full(36, 0.5), generator.normal(size=(40, 36))
    region = Region(centre - 0.1, centre + 0.1, normals, normals @ centre + 0.1)
    program, margin = Program(UnitBounds.of(network, region)), network.logits.rows([0])
    asked, counted = [], Program._solved
    monkeypatch.setattr(Program, "_solved", lambda *given, **named: asked.append(named) or counted(*given, **named))
    optimum = program.largest(margin, -math.inf, 60, EXACT).margin
    assert len(asked) == 1
    for near in (1, 4, 40):
        monkeypatch.setattr(exact_program, "NEAR", near)
        asked.clear()
        found = program.largest(margin, optimum - 1e-3, 60)
        assert found.point is not None and optimum - 2e-3 < found.margin <= optimum + 1e-4
        assert (normals @ found.point <= region.limits + 1e-5).all()
        assert (len(asked) > 2) == (near < 40)
        above = program.largest(margin, optimum + 1e-3, 60)
        assert above.point is None and above.bound <= optimum + 1e-3


def test_a_point_that_half_spaces_leave_out_is_kept_when_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its projection may be misclassified: the point is tried, and its margin is none of the region."""
    network, generator = Network.read(made("perceptron"), SHAPE), numpy.random.default_rng(1)
    centre, normals = numpy.full(36, 0.5), generator.normal(size=(40, 36))
    region = Region(centre - 0.1, centre + 0.1, normals, normals @ centre + 0.1)
    program, margin = Program(UnitBounds.of(network, region)), network.logits.rows([0])
    least = program.largest(margin, -math.inf, 60, EXACT).margin - 1e-3
    monkeypatch.setattr(exact_program, "NEAR", 1)
    clock = itertools.chain([0.0, 0.0], itertools.repeat(1e9))  # over after the first program
    monkeypatch.setattr(exact_program, "time", SimpleNamespace(monotonic=clock.__next__))
    found = program.largest(margin, least, 60)
    assert found.point is not None and (normals @ found.point > region.limits).any()
    assert found.margin == -math.inf


@pytest.mark.parametrize("sign", [1, -1])
def test_rows_have_room_for_what_is_left_out_of_them(sign: int) -> None:
    """A row holds, on both sides, wherever it held with its tiny entries: at 1,000 points, and with all at one end."""
    generator, tiny = numpy.random.default_rng(0), numpy.full((4, 500), 0.9e-9) * sign
    whole = numpy.hstack([generator.normal(size=(4, 5)), tiny])
    matrix, room = exact_program._without_tiny(sparse.csc_matrix(whole), numpy.ones(505))
    assert (matrix.toarray()[:, 5:] == 0).all() and (matrix.toarray()[:, :5] == whole[:, :5]).all()
    points = numpy.vstack([generator.uniform(-1, 1, (1000, 505)), numpy.ones(505), -numpy.ones(505)])
    assert (abs(points @ (whole - matrix.toarray()).T) <= room * (1 + 1e-12)).all()
    assert room == pytest.approx(500 * 0.9e-9)


def test_room_is_given_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what a row demands at least would be a proof where it is not met."""
    program, asked = Program(UnitBounds.of(Network.read(made("perceptron"), SHAPE), box())), []
    nothing = SimpleNamespace(status=2, x=None, mip_dual_bound=None)
    margin, counted = Value({0: sparse.csr_matrix((1, 36))}, numpy.zeros(1), (1,)), exact_program._without_tiny
    monkeypatch.setattr(exact_program, "_without_tiny", lambda *given: (counted(*given)[0], 0.125))
    monkeypatch.setattr("scipy.optimize.milp", lambda *given, **named: asked.append(named) or nothing)
    program.largest(margin, -math.inf, 1)
    given = asked[0]["constraints"]
    least = numpy.concatenate([*program._least, numpy.zeros(1)])
    most = numpy.concatenate([*program._most, numpy.zeros(1)])
    by = numpy.concatenate([*program._rows, numpy.ones(1)])
    assert numpy.array_equal(given.lb, least / by - 0.125) and numpy.array_equal(given.ub, most / by + 0.125)


def test_a_relaxation_without_an_answer_in_time_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the program end there: it is solved without half-spaces then, for as long as there is time."""
    network, normals = Network.read(made("perceptron"), SHAPE), numpy.random.default_rng(1).normal(size=(40, 36))
    region = Region(numpy.full(36, 0.4), numpy.full(36, 0.6), normals, normals @ numpy.full(36, 0.5) + 0.1)
    answers, asked = SimpleNamespace(status=1, x=None, mip_dual_bound=None), []
    monkeypatch.setattr(Program, "_solved", lambda *_, **named: asked.append(named) or answers)
    found = Program(UnitBounds.of(network, region)).largest(network.logits.rows([0]), -math.inf, 1)
    assert [len(each["chosen"]) for each in asked] == [40, 0]
    assert found.point is None and found.bound > -math.inf


def test_bounds_of_maxima_hold_where_all_candidates_are_negative() -> None:
    """A linear bound above a maximum must not count a candidate beside the largest upper bound."""
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9, 2))
    pooled[0].weight.data.fill_(1.0)
    pooled[0].bias.data.fill_(-5.0)
    network = Network.read(pooled.double(), SHAPE)
    generator = numpy.random.default_rng(0)
    points = generator.random((500, 36))
    bounds = UnitBounds.of(network, no_half_spaces(numpy.zeros(36), numpy.ones(36)))
    with torch.no_grad():
        reached = pooled(torch.from_numpy(points).view(-1, *SHAPE)).numpy()
    for sign in (1, -1):
        value = network.logits if sign == 1 else negative(network.logits)
        assert ((sign * reached).max(0) <= bounds.largest(value, -math.inf)).all()


def test_bounds_over_half_spaces_are_those_of_the_program_at_every_scale() -> None:
    generator = numpy.random.default_rng(0)
    normals, scales = generator.normal(size=(5, 36)), 10.0 ** numpy.arange(-4, 5)
    region = Region(numpy.zeros(36), numpy.ones(36), normals, normals @ numpy.full(36, 0.5) + 0.1)
    slopes = generator.normal(size=(len(scales), 36))
    value = Value({0: sparse.csr_matrix(scales[:, None] * slopes)}, numpy.zeros(len(scales)), scales.shape)
    bounds = UnitBounds(Network(), region, after=[(region.lower, region.upper)], programs=len(scales))
    for slope, scale, bound in zip(slopes, scales, bounds.largest(value, -math.inf), strict=True):
        best = -linprog(-slope, normals, region.limits, bounds=(0, 1)).fun
        assert best - 1e-9 <= bound / scale <= best + 1e-4


@pytest.mark.parametrize("by", ["program", "branches"])
def test_how_a_network_divides_its_numbers_over_layers_makes_no_difference(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same function with one layer times a factor and the next divided by it: the solver called it robust."""
    answers = {}
    monkeypatch.setattr("testing.exact.MANY", 0 if by == "branches" else 1000)
    for factor in (1.0, 1e-10, 1e-5, 1e5, 1e10):
        torch.manual_seed(0)
        images = torch.rand(1, *SHAPE)
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
        net.eval().requires_grad_(False)
        for weights, scale in ((net[0].weight, factor), (net[0].bias, factor), (net[2].weight, 1 / factor)):
            weights.mul_(scale)
        net[5].weight.mul_(20)
        logits = net(images)[0].sort(descending=True)
        net[5].bias[logits.indices[0]] -= (logits.values[0] - logits.values[1]) * 0.8
        answers[factor] = exact_robustness(net, images, logits.indices[:1], Linf(), 0.1, attacks=())
    for found in answers.values():
        assert bool(found.broken) and found.by == [by]


def test_nothing_is_proven_of_small_layers_that_is_false_of_large_ones() -> None:
    """A hidden layer of 1e-5 and a steep one after it: what HiGHS takes for 0 were whole units."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(24, *SHAPE, generator=generator)

    def network(factor: float) -> nn.Module:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 3))
        for weight in net.requires_grad_(False).parameters():
            weight.mul_(2)
        for weight, scale in ((net[1].weight, factor), (net[1].bias, factor), (net[3].weight, 1 / factor)):
            weight.mul_(scale)
        return net

    labels = network(1.0)(images).argmax(1)
    found = [exact_robustness(network(c), images, labels, Linf(), 0.06, attacks=(), seconds=20) for c in (1.0, 1e-5)]
    assert 3 < int(found[0].broken.sum()) < 21
    assert torch.equal(found[0].robust, found[1].robust) and torch.equal(found[0].broken, found[1].broken)


def test_every_number_of_a_program_has_to_be_in_scale() -> None:
    network = Network.read(made("perceptron"), SHAPE)
    for place in ("weights", "half-spaces", "a bound that is NaN", ""):
        region = Region(numpy.zeros(36), numpy.ones(36), numpy.ones((1, 36)), numpy.full(1, 9.0))
        program, margin = Program(UnitBounds.of(network, region)), network.logits.rows([0])
        if place == "weights":
            program._groups[0] = {block: part * 1e10 for block, part in program._groups[0].items()}
        if place == "half-spaces":
            region.rows[0, 7] = 1e10
        if place == "a bound that is NaN":
            program.low[1] = program.low[1] * numpy.nan
        solved = program.largest(margin, -math.inf, 20, EXACT)
        assert (solved.point is None) == bool(place), place
