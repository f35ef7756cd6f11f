"""Branch and bound and its dual bounds, against points of the parts, linear programs and the mixed-integer optimum."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from testing import exact_branches
from testing.exact import exact_robustness
from testing.exact_ascent import ascended
from testing.exact_bounds import Region, UnitBounds, over
from testing.exact_branches import branched, can_branch
from testing.exact_dual import Dual, Parts
from testing.exact_network import Network, Value
from testing.exact_program import EXACT, Program
from tests.testing.relu_networks import NETS, SHAPE, after, inside, made, values
from threat_specification import Linf


def optima(bounds: UnitBounds, margins: Value) -> numpy.ndarray:
    """The largest margins, by the mixed-integer program."""
    program = Program(bounds)
    solved = [program.largest(margins.rows([k]), -math.inf, 60, EXACT) for k in range(len(margins.constant))]
    return numpy.array([one.margin for one in solved])


@pytest.mark.parametrize("name", NETS)
def test_whatever_its_numbers_a_bound_holds_at_all_points_of_its_part(name: str) -> None:
    """The signs of a part are those that the units have at one of the points."""
    network, region, bounds, margins = made(name)
    dual = Dual.of(bounds, margins)
    points = inside(region, 400)
    assert len(points) > 100
    signs = []
    for point in points:
        pairs = zip(values(network, point), bounds.before.values(), strict=True)
        signs.append(numpy.concatenate([row[(low < 0) & (high > 0)] for row, (low, high) in pairs]))
    signs, reached = numpy.sign(numpy.array(signs)), numpy.array([margins.at([p, *after(network, p)]) for p in points])
    draws = torch.Generator().manual_seed(0)
    assert dual.open_units > 12
    for example in range(0, 100, 5):
        row = torch.arange(3)
        known = torch.rand(dual.open_units, generator=draws) < 0.4
        given = torch.where(known, torch.from_numpy(signs[example]), 0.0).to(torch.int8).expand(3, -1)
        free = [torch.rand(3, n, generator=draws) for n in (dual.open_units, dual.open_units, len(region.rows))]
        found = dual.bounds(Parts(row, given, *free, torch.zeros(3))).numpy()
        same = ((signs == given[0].numpy()) | (given[0].numpy() == 0)).all(1)
        assert same[example] and (reached[same] <= found).all()


@pytest.mark.parametrize("name", NETS)
def test_ascent_comes_near_the_linear_program(name: str) -> None:
    """Weak duality: never below the optimum of the relaxed program, of which it is the dual."""
    _, region, bounds, margins = made(name)
    dual = Dual.of(bounds, margins)
    start = dual.whole(torch.arange(3))
    start = replace(start, slopes=torch.full_like(start.slopes, 0.5))
    before = dual.bounds(start)
    found = ascended(dual.to(torch.float32), start, 300, -math.inf, 1.0, math.inf)
    program, chosen = Program(bounds), numpy.arange(len(region.rows))
    for k in range(3):
        margin = margins.rows([k])
        low, high = bounds.intervals(margin)
        best = -program._solved(margin, low[0], high[0], chosen, relaxed=True).fun
        assert best - 1e-4 <= float(found.bound[k]) <= best + 0.05 * (float(before[k]) - best) + 1e-3
        assert float(before[k]) > best + 0.01


@pytest.mark.parametrize("name", NETS)
def test_where_all_signs_are_given_the_bound_is_the_largest_margin(name: str) -> None:
    """Of the affine network that those signs make, by a program of its units; empty parts are proven too."""
    network, region, bounds, margins = made(name)
    dual = Dual.of(bounds, margins)
    draws, empty, full = torch.Generator().manual_seed(0), 0, 0
    for point in inside(region, 200)[:12]:
        inputs = numpy.concatenate(values(network, point))
        is_open = numpy.concatenate([(bounds.before[n][0] < 0) & (bounds.before[n][1] > 0) for n in bounds.before])
        real = torch.from_numpy(numpy.sign(inputs[is_open])).to(torch.int8)
        off = real.clone()
        off[dual.layers[-1].at] = -1  # then no slope is left in perceptrons
        other = torch.where(torch.rand(len(real), generator=draws) < 0.2, -real, real)
        for signs in (real, off, other):
            found = dual.exact(replace(dual.whole(torch.arange(1)), signs=signs[None]), 0, math.inf).bound
            truth = largest_by_units(network, region, bounds, margins.rows([0]), signs.numpy())
            if math.isfinite(truth):
                full += 1
                assert found == pytest.approx(truth, abs=1e-5)
            else:
                empty += 1
                assert found < margins.rows([0]).at([point, *after(network, point)])[0]
    assert empty > 5 and full > 11


def largest_by_units(
    network: Network, region: Region, bounds: UnitBounds, margin: Value, signs: numpy.ndarray
) -> float:
    """The largest margin where open units have these signs, with a variable for each unit; -inf without a point."""
    sizes = [block.size for block in network.blocks]
    first = numpy.cumsum([0, *sizes])

    def row(value: Value) -> numpy.ndarray:
        made = numpy.zeros((len(value.constant), first[-1]))
        for block, part in value.parts.items():
            made[:, first[block] : first[block + 1]] = part.toarray()
        return made

    through, limits, taken = [numpy.pad(region.rows, ((0, 0), (0, first[-1] - 36)))], [region.limits], 0
    box = [*zip(region.lower, region.upper, strict=True)]
    for number, block in enumerate(network.blocks[1:], start=1):
        assert block.before is not None
        inputs, own = row(block.before), numpy.eye(first[-1])[first[number] : first[number + 1]]
        low, high = bounds.before[number]
        on = low >= 0
        is_open = (low < 0) & (high > 0)
        given = signs[taken : taken + is_open.sum()]
        taken += len(given)
        on[is_open] = given > 0
        for sign in (1, -1):  # own = inputs + constant where on, else 0
            through.append(sign * (own - on[:, None] * inputs))
            limits.append(sign * on * block.before.constant)
        through.append(-given[:, None] * inputs[is_open])
        limits.append(given * block.before.constant[is_open])
        box += [(None, None)] * block.size
    solved = linprog(-row(margin)[0], numpy.concatenate(through), numpy.concatenate(limits), bounds=box, method="highs")
    return -math.inf if solved.status == 2 else float(margin.constant[0] - solved.fun)


@pytest.mark.parametrize("half_spaces", [0, 3])
@pytest.mark.parametrize("name", NETS)
def test_goals_above_the_optimum_are_proven_and_none_below(name: str, half_spaces: int) -> None:
    """A search without end: where the goal can be met, it stops at a part whose signs are all given, with a point."""
    network, region, bounds, margins = made(name, half_spaces)
    best = optima(bounds, margins)[0]
    above, below = best + 0.01, best - 0.001
    most = numpy.array([bounds.largest(margins, math.inf)[0], -math.inf, -math.inf])
    assert branched(bounds, margins, most, above, math.inf).most[0] == above < most[0] - 0.1
    found = branched(bounds, margins, most, below, math.inf)
    assert found.most[0] == most[0]
    reached = margins.at([found.point, *after(network, found.point)])[0]
    assert below - 1e-6 <= reached <= best + 1e-6
    assert (found.point >= region.lower - 1e-6).all() and (found.point <= region.upper + 1e-6).all()
    assert (region.rows @ found.point <= region.limits + 1e-6).all()


def test_without_time_only_what_needs_no_branches_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, bounds, margins = made("perceptron")
    dual = Dual.of(bounds, margins)
    whole, steps = dual.whole(torch.arange(3)), exact_branches.FIRST_STEPS
    root = ascended(dual.to(torch.float32), whole, steps, -math.inf, 1.0, math.inf).bound.numpy()
    best, most = optima(bounds, margins).max(), bounds.largest(margins, math.inf)
    before = float(dual.bounds(dual.whole(torch.arange(3))).max())
    between, above = (best + root.max()) / 2, before + 0.01
    assert best + 0.05 < root.max() < before < most.max() + 1e-6
    most += 0.1
    assert branched(bounds, margins, most, above, 0.0).most.max() == above
    assert branched(bounds, margins, most, between, 0.0).most.max() == most.max()
    assert branched(bounds, margins, most, between, math.inf).most.max() == between
    monkeypatch.setattr(exact_branches, "AT_ONCE", 1)  # depth first
    assert branched(bounds, margins, most, between, math.inf).most.max() == between


def test_ascents_and_linear_programs_keep_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _, region, bounds, margins = made("perceptron")
    dual, steps, limits = Dual.of(bounds, margins), list[int](), list[float]()
    real = Dual.backward
    monkeypatch.setattr(Dual, "backward", lambda *given: steps.append(1) or real(*given))
    for end, expected in ((0.0, 1), (math.inf, 6)):
        steps.clear()
        ascended(dual.to(torch.float32), dual.whole(torch.arange(3)), 5, -math.inf, 1.0, end)
        assert len(steps) == expected
    monkeypatch.setattr("scipy.optimize.linprog", lambda *given, options, **named: (
        limits.append(options["time_limit"]) or linprog(*given, options=options, **named)))  # fmt: skip
    for left in (50, -50):
        over(region, numpy.ones(36), time.monotonic() + left)
        dual.exact(
            replace(dual.whole(torch.arange(1)), signs=torch.ones(1, dual.open_units)), 0, time.monotonic() + left
        )
    assert 40 < min(limits[:2]) <= max(limits[:2]) <= 50 and max(limits[2:]) < 1


def test_what_float32_takes_as_proven_is_proven_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, bounds, margins = made("convolutions")
    best, most = optima(bounds, margins).max(), bounds.largest(margins, math.inf)
    real = Dual.to

    def too_low(dual: Dual, dtype: torch.dtype) -> Dual:
        made = real(dual, dtype)
        return replace(made, constant=made.constant - 10)

    monkeypatch.setattr(Dual, "to", too_low)
    assert branched(bounds, margins, most, best - 0.05, time.monotonic() + 1).most.max() == most.max()


def test_bounds_given_before_stay_where_they_are_good_enough() -> None:
    _, _, bounds, margins = made("perceptron")
    goal = float(optima(bounds, margins).max()) + 0.05
    assert branched(bounds, margins, numpy.array([goal - 3, goal + 1, goal - 2]), goal, math.inf).most.tolist() == [
        goal - 3, goal, goal - 2]  # fmt: skip
    low = numpy.full(3, goal - 1)
    assert branched(bounds, margins, low, goal, math.inf).most is low
    unknown = numpy.array([math.inf, 0, 0])
    assert branched(bounds, margins, unknown, goal, math.inf).most is unknown


def test_numbers_that_float32_cannot_hold_prove_nothing() -> None:
    """Weights of 1e30 in one layer and 1e-30 in the next: products of what is in range are not."""
    network, region, _, _ = made("perceptron")
    for number, factor in ((1, 1e30), (2, 1e30)):
        before = network.blocks[number].before
        assert before is not None
        scaled = Value({b: part * factor for b, part in before.parts.items()}, before.constant * factor, before.shape)
        network.blocks[number] = replace(network.blocks[number], before=scaled)
    margins = network.logits.rows([1, 2, 3]).plus(network.logits.rows([0, 0, 0]), -1)
    most = numpy.full(3, 1e70)
    assert (branched(UnitBounds.of(network, region), margins, most, 0.0, math.inf).most == most).all()


def test_networks_of_relus_alone_branch() -> None:
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 4))
    affine = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    large = nn.Sequential(nn.Flatten(), nn.Linear(36, 5000), nn.ReLU(), nn.Linear(5000, 5000), nn.ReLU())
    assert all(can_branch(made(name)[0]) for name in NETS)
    assert not any(can_branch(Network.read(net.eval(), SHAPE)) for net in (pooled, affine))
    wide = Network.read(large[:3].eval(), SHAPE)
    assert can_branch(wide)
    wide.blocks.append(replace(wide.blocks[1], size=5000, before=replace(wide.logits, parts={1: wide.logits.parts[1]})))
    assert not can_branch(wide)


def test_matrices_are_those_that_units_of_known_sign_make() -> None:
    """No others, though a block may depend on all blocks before; their entries are limited, as if all did."""
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Flatten(), *(layer for _ in range(4) for layer in (nn.Linear(36, 36), nn.ReLU())))
    for layer in deep[1::2]:
        layer.bias.data[0] = -100 if layer is deep[1] else 100  # one unit of the first layer is off, of others on
    network = Network.read(nn.Sequential(deep, nn.Linear(36, 4)).eval().requires_grad_(False), SHAPE)
    region = Region(numpy.full(36, 0.1), numpy.full(36, 0.9), numpy.zeros((0, 36)), numpy.zeros(0))
    dual = Dual.of(UnitBounds.of(network, region), network.logits)
    assert [sorted(layer.parts) for layer in dual.layers] == [[0], [1], [1, 2], [1, 2, 3]]
    assert can_branch(network)
    for _ in range(12):
        last = network.blocks[-1]
        network.blocks += [replace(last, size=1000), replace(last, size=1000)]
    assert not can_branch(network)


def test_exact_answers_are_those_of_the_program_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))
    for layer in net:
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 3
    images = torch.rand(40, *SHAPE)
    best = net(images).topk(2, 1)
    chosen = (best.values[:, 0] - best.values[:, 1]).argsort(descending=True)[:7]
    images, labels = images[chosen], best.indices[chosen, 0]
    monkeypatch.setattr("testing.exact.MANY", 0)
    found = exact_robustness(net, images, labels, Linf(), 0.06, attacks=())
    monkeypatch.setattr("testing.exact.can_branch", lambda network: False)
    alone = exact_robustness(net, images, labels, Linf(), 0.06, attacks=())
    assert torch.equal(found.robust, alone.robust) and torch.equal(found.broken, alone.broken)
    assert found.by.count("branches") > 2 and "branches" not in alone.by and bool(found.broken.any())
    by_branches = torch.tensor([by == "branches" for by in found.by])
    assert bool(((found.margin > 0) == found.broken)[by_branches].all())
    assert bool((found.robust & by_branches).any()) and bool((found.broken & by_branches).any())
    wrong = found.broken & by_branches
    assert bool((net(found.point).argmax(1) != labels)[wrong].all())
    assert float((found.point - images).abs().max()) <= 0.06 + 1e-6
