"""Certificates against random points, loops, linear programs and exact answers."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from foundations.errors import RunError
from foundations.plain_networks import PlainNetwork, margins
from testing import certificates, half_spaces, linear_bounds
from testing.certificates import CertificateEvaluation, certified_robustness
from testing.evaluations import AttackEvaluation
from testing.exact import exact_robustness, region_of
from testing.half_spaces import Box, HalfSpaces, ascend, dual_value, half_spaces_of, reached
from testing.linear_bounds import Lines, bounds_of_layers, margin_lines
from testing.shards import Shard
from tests.foundations.test_plain_networks import NETS, SHAPE, boxes, made
from tests.testing.test_exact import SHAPE as FORM_SHAPE
from tests.testing.test_exact import forms
from tests.threat_specification.attacks.linear import best_margin
from tests.threat_specification.attacks.linear import problem as linear_problem
from tests.threat_specification.attacks.test_exact import problem
from threat_specification import L2, AnchorSet, Intersection, Linf, ProjectedDisplacement
from threat_specification.attacks.base import at_most
from threat_specification.attacks.search import Cell


@torch.no_grad()
@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_no_point_of_the_box_is_below_a_line(name: str, refined: bool) -> None:
    network, (low, high) = PlainNetwork.read(made(name)), boxes(4)
    labels = torch.tensor([0, 3, 1, 1])
    found = bounds_of_layers(network, low, high, refined)
    lines = margin_lines(network, found, labels)
    assert lines.which.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    factors, which = margins(labels, 4)
    least = lines.least(low.flatten(1), high.flatten(1))
    generator, closest = torch.Generator().manual_seed(0), math.inf
    for number in range(1500):
        share = torch.rand(4, *SHAPE, generator=generator, dtype=torch.float64)
        point = low + (high - low) * (share.round() if number % 2 else share)
        if number % 3 == 0:  # the corners where the lines are smallest, one of each image
            corner = torch.where(lines.slope[number // 3 % 3 :: 3] > 0, low.flatten(1), high.flatten(1))
            point = corner.view(4, *SHAPE)
        values = point
        for step, (below_, above) in zip(network.steps, found[1:], strict=True):
            values = step(values)
            assert (values >= below_).all() and (values <= above).all()
        reached = (factors * values[which]).sum(1)
        line = (lines.slope * point.flatten(1)[which]).sum(1) + lines.constant
        assert (reached >= line - 1e-12).all() and (line >= least - 1e-12).all()
        closest = min(closest, float((reached - least).min().detach()))
    assert 0 <= closest < 1
    if refined:
        quick = bounds_of_layers(network, low, high)
        assert all((mine >= before).all() for (mine, _), (before, _) in zip(found, quick, strict=True))


def test_margins_are_those_of_loops() -> None:
    factors, which = margins(torch.tensor([1, 0]), 3)
    assert which.tolist() == [0, 0, 1, 1]
    assert factors.tolist() == [[-1, 1, 0], [0, 1, -1], [1, -1, 0], [1, 0, -1]]


@torch.no_grad()
def test_two_layers_are_bounded_as_by_loops() -> None:
    """The line of a net of two linear layers by loops over its units, each on its safe side."""
    net = made("perceptron")
    network, (low, high) = PlainNetwork.read(net), boxes(2)
    lines = margin_lines(network, bounds_of_layers(network, low, high), torch.tensor([2, 0]))
    (w1, b1), (w2, b2) = ((layer.weight.numpy(), layer.bias.numpy()) for layer in (net[1], net[3]))
    for row, (image, label) in enumerate(((0, 2), (1, 0))):
        lo, hi = low[image].flatten().numpy(), high[image].flatten().numpy()
        for place, other in enumerate(k for k in range(4) if k != label):
            factor, constant, slope = w2[label] - w2[other], b2[label] - b2[other], numpy.zeros(84)
            for unit in range(9):
                least = b1[unit] + numpy.minimum(w1[unit] * lo, w1[unit] * hi).sum()
                most = b1[unit] + numpy.maximum(w1[unit] * lo, w1[unit] * hi).sum()
                steep, shift = (1.0, 0.0) if least >= 0 else (0.0, 0.0)
                if least < 0 < most:
                    steep = most / (most - least) if factor[unit] < 0 else float(most > -least)
                    shift = -least * steep if factor[unit] < 0 else 0.0
                slope += factor[unit] * steep * w1[unit]
                constant += factor[unit] * (steep * b1[unit] + shift)
            assert numpy.allclose(lines.slope[3 * row + place], slope, atol=1e-6)
            assert float(lines.constant[3 * row + place]) == pytest.approx(constant, abs=1e-6)


def linear_lines(count: int, size: int, seed: int) -> Lines:
    generator = torch.Generator().manual_seed(seed)
    slope = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return Lines(slope, torch.randn(count, generator=generator, dtype=torch.float64), torch.zeros(count).long())


@pytest.mark.parametrize("name", forms())
def test_the_dual_is_the_linear_program(name: str) -> None:
    """Never above the optimum of HiGHS over the set's own rows, near it after the ascent, the box's bound at l = 0."""
    threat, context = forms()[name]
    x = 0.2 + 0.6 * torch.rand(1, *FORM_SHAPE, generator=torch.Generator().manual_seed(5))
    gained = 0.0
    for cell in (Cell(0.2, 0.15), Cell(0.05, 0.4), Cell(0.1, math.inf)):
        bound = threat.bind(x, torch.tensor([1]), **context)
        region, box = region_of(bound, cell), Box.of(bound, cell)
        flat = x.flatten().double().numpy()
        low, high = box.lower[0].numpy(), box.upper[0].numpy()
        assert numpy.allclose(low + flat, region.lower) and numpy.allclose(high + flat, region.upper)
        assert (low <= region.lower - flat + 1e-15).all() and (high >= region.upper - flat - 1e-15).all()
        repeated = {name: mask.expand(8, -1, -1, -1) for name, mask in context.items()}

        def spaces_at(which: torch.Tensor, cell: Cell = cell, repeated: dict = repeated) -> list[HalfSpaces]:
            some = {name: mask[which] for name, mask in repeated.items()}
            return half_spaces_of(threat.bind(x.expand(len(which), -1, -1, -1), torch.ones_like(which), **some), cell)

        lines, spaces = linear_lines(8, 36, 1), spaces_at(torch.arange(8))
        lower, upper = (side.expand(8, -1) for side in (box.lower, box.upper))
        none = [torch.zeros_like(space.bound.inverse, dtype=torch.float64) for space in spaces]
        alone = dual_value(lines, lower, upper, spaces, none)
        assert torch.allclose(alone, lines.least(box.lower, box.upper), atol=1e-6)
        rows, limits, sides = region.rows, region.limits - region.rows @ flat, numpy.stack([low, high], 1)
        solved = [linprog(slope, rows, limits, bounds=sides).fun for slope in lines.slope.numpy()]
        truth = lines.constant + torch.tensor(solved, dtype=torch.float64)
        best = ascend(lines, lower, upper, truth - 1e-5, spaces_at)
        assert (best <= truth + 1e-7).all() and (best >= truth - 0.02 * (truth - alone) - 1e-4).all()
        at_point = reached(
            lines, lower, upper, threat.bind(x.expand(8, -1, -1, -1), torch.ones(8).long(), **repeated), cell
        )
        assert (at_point >= truth - 1e-5).all()
        gained += float((best - alone).sum())
        generator = torch.Generator().manual_seed(2)
        for _ in range(30):  # whatever the multipliers
            l = [0.1 * torch.rand(each.shape, generator=generator).double() ** 4 for each in none]  # noqa: E741
            values = dual_value(lines, lower, upper, spaces, l)
            assert (values <= best + 0.02 * (best - alone) + 1e-4).all()
    assert (gained > 1) == (name not in ("Linf", "PD and Linf"))


def test_multipliers_that_are_wrong_still_bound() -> None:
    """Points of the set, found by projecting random ones, are nowhere below a bound of random multipliers."""
    _, anchors, images, labels = linear_problem(4)
    cell, generator = Cell(0.05, 0.4), torch.Generator().manual_seed(0)
    bound = ProjectedDisplacement(anchors=anchors).bind(images, labels)
    box, spaces = Box.of(bound, cell), half_spaces_of(bound, cell)
    lines = linear_lines(len(images), 36, 0)
    for _ in range(60):
        target = torch.randn(images.shape, generator=generator)
        inside = bound.project(
            target, cell.threshold, (-images).clamp_min(-cell.radius), (1 - images).clamp_max(cell.radius)
        )
        inside = inside.flatten(1).double()
        l = 0.02 * torch.rand(len(images), len(anchors), generator=generator).double() ** 6  # noqa: E741
        reached = (lines.slope * inside).sum(1) + lines.constant
        values = dual_value(lines, box.lower, box.upper, spaces, [l])
        assert (values <= reached).all()


def test_a_linear_net_is_certified_as_linear_programs_say() -> None:
    model, anchors, images, labels = linear_problem(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    net[1].weight.data, net[1].bias.data = model.weight.data, model.bias.data
    seen = []
    for threshold, radius in ((0.1, 0.12), (0.02, 0.2)):
        found = certified_robustness(net, images, labels, ProjectedDisplacement(anchors=anchors), threshold, radius)
        for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            truth = best_margin(model, anchors, image, label, threshold, radius)
            assert truth - 1e-6 <= found.margin[row] and found.margin[row] <= found.box_margin[row]
            if abs(truth) > 2e-3:
                assert bool(found.robust[row]) == (truth < 0)
            assert not found.box[row] or found.robust[row]
            seen.append((bool(found.robust[row]), bool(found.box[row])))
    assert {(True, True), (True, False), (False, False)} == set(seen)


def test_nothing_is_certified_that_a_program_or_an_attack_breaks() -> None:
    """On a trained net in several cells: certified implies proven robust; the box alone implies the set."""
    net, anchors, images, labels = problem()
    threat, count, images, labels = ProjectedDisplacement(anchors=anchors), 0, images[:6], labels[:6]
    for threshold, radius in ((0.1, 0.1), (0.05, 0.15)):
        found = certified_robustness(net, images, labels, threat, threshold, radius)
        exact = exact_robustness(net, images, labels, threat, threshold, radius, seconds=20, attacks=("momentum_ce",))
        assert not (found.robust & exact.broken).any() and (exact.robust >= found.robust).all()
        assert (found.margin[exact.broken] >= exact.margin[exact.broken] - 1e-5).all()
        assert (found.robust >= found.box).all()
        count += int((found.robust & ~found.box).sum())
    assert count >= 1


def test_an_image_that_is_misclassified_or_on_the_border_has_none() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    net[1].weight.data.zero_()
    images = torch.rand(3, 1, 2, 2)
    for bias, wanted in (
        ([0.0, -1, -1], [True, False, False]),
        ([0.0, 0, -1], [False] * 3),
        ([1e-6, 0, -1], [False] * 3),
    ):
        net[1].bias.data = torch.tensor(bias)
        assert certified_robustness(net, images, [0, 1, 2], Linf(), 0.1).robust.tolist() == wanted


def test_the_box_covers_what_counts_as_inside() -> None:
    """A net that is wrong at a point just beyond the radius, which still counts as inside."""
    net, radius, steep = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).double(), 0.1, 1e3
    image = torch.full((1, 1, 1, 1), 0.5)
    for beyond, wanted in ((1.08e-5, False), (1e-3, True)):
        net[1].weight.data = torch.tensor([[steep], [0.0]], dtype=torch.float64)
        net[1].bias.data = torch.tensor([-steep * (0.5 - radius * (1 + beyond)), 0.0], dtype=torch.float64)
        assert bool(at_most(torch.tensor(radius * (1 + beyond)).double(), radius)) != wanted
        for limits in ((radius, math.inf), (1.0, radius)):
            assert bool(certified_robustness(net, image, [0], Linf(), *limits).robust) == wanted


def test_an_intersection_uses_all_its_members() -> None:
    model, anchors, images, labels = linear_problem(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    net[1].weight.data, net[1].bias.data = model.weight.data, model.bias.data
    half = [AnchorSet(anchors.images[k::2], anchors.labels[k::2]) for k in range(2)]
    both = Intersection([(ProjectedDisplacement(anchors=each), 1.0) for each in half])
    found = certified_robustness(net, images, labels, both, 0.01, 0.15)
    for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        truth = best_margin(model, anchors, image, label, 0.01, 0.15)
        assert found.margin[row] >= truth - 1e-6
        if abs(truth) > 0.04:
            assert bool(found.robust[row]) == (truth < 0)
    assert int((found.robust & ~found.box).sum()) >= 1


def test_parts_and_all_at_once_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    net, anchors, images, labels = problem()
    given = (net, images[:6], labels[:6], ProjectedDisplacement(anchors=anchors), 0.1, 0.12)
    whole = certified_robustness(*given)
    for place in (certificates, linear_bounds):
        monkeypatch.setattr(place, "PIECE_BYTES", 8 * 64 * 3)
    monkeypatch.setattr(certificates, "LINES_BYTES", 8 * 64 * 4 * 4)  # four images at once
    monkeypatch.setattr(half_spaces, "ANCHORS", 7)
    monkeypatch.setattr(half_spaces, "KEPT_BYTES", 0)
    parts = certified_robustness(*given)
    assert torch.equal(whole.robust, parts.robust) and torch.equal(whole.box, parts.box)
    assert torch.allclose(whole.margin, parts.margin, atol=0.05)  # an ascent goes on while one of its lines needs it


def test_what_it_cannot_describe_is_named() -> None:
    flat = [nn.Flatten(), nn.Linear(36, 4)]
    images, labels = torch.rand(2, 1, 6, 6), [0, 1]
    with pytest.raises(ValueError, match=r"certificates: layer .*2, Sigmoid"):
        certified_robustness(nn.Sequential(*flat, nn.Sigmoid()), images, labels, Linf(), 0.1)
    with pytest.raises(ValueError, match=r"certificates: expected a threat of half-spaces .* got L2"):
        certified_robustness(nn.Sequential(*flat), images, labels, L2(), 0.1)


def test_the_model_keeps_its_mode_and_type() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Dropout(), nn.ReLU(), nn.Linear(4, 4)).train()
    evaluation = CertificateEvaluation.of(AttackEvaluation(net, Linf(), Cell(0.1, 0.1), {}, 1, 0))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images, labels = torch.rand(3, 1, 6, 6), torch.tensor([0, 1, 2])
    evaluation(Shard(0, images, labels, torch.arange(3)))
    certified_robustness(net, images, labels, Linf(), 0.1)
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(weight.requires_grad for weight in net.parameters())


class AtCorners(nn.Module):
    """A linear model that answers with the other class where no pixel is left as it is, unseen when it is followed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(torch.tensor([1.0, 0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer = self.linear(x.flatten(1))
        moved = type(x) is torch.Tensor and bool((x > 0.55).all())
        return -answer if moved else answer


def test_a_model_that_does_more_than_its_layers_has_no_certificate() -> None:
    with pytest.raises(RunError, match="not those of the layers"):
        certified_robustness(AtCorners(), torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), Linf(), 0.1)


def test_a_network_that_overflows_beside_the_image_has_no_certificate() -> None:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(4, 4), nn.ReLU()]
    for _ in range(12):
        layers += [nn.Linear(4, 4, bias=False), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(4, 2))
    with torch.no_grad():
        for layer in model[1:-1:2]:
            layer.weight.copy_(torch.eye(4) * 1e38 - 1e36)
        model[1].bias.fill_(-0.55e38)
        model[-1].weight.copy_(torch.tensor([[-1e38] * 4, [0.0] * 4]))
        model[-1].bias.copy_(torch.tensor([1.0, 0.0]))
    images = torch.full((1, 1, 2, 2), 0.5)
    assert model(images).argmax(1) == 0 and model(images + 0.08).isnan().all()
    assert not certified_robustness(model, images, torch.tensor([0]), Linf(), 0.1).robust


def test_a_margin_below_what_float32_rounds_is_no_certificate() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[4e3, 0.1, 0.1, 0.1]]).expand(2, 4))
        model[1].bias.copy_(torch.tensor([0.0, 4e-4]))  # float32 knows 4,000 to 1e-4
        model[2].weight.copy_(torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))
        model[2].bias.zero_()
    images = torch.full((1, 1, 2, 2), 0.97)
    assert not certified_robustness(model, images, torch.tensor([0]), Linf(), 1 / 255).robust
