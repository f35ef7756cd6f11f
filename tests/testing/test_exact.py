"""Exact answers for small networks, against grids, loops, a program of another make and nets that mislead."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from foundations.errors import RunError, UsageError
from testing.certificates import certified_robustness
from testing.evaluations import AttackEvaluation
from testing.exact import Case, exact_robustness, region_of
from testing.exact_network import Network
from testing.exact_program import Program
from testing.robust_accuracy import robust_accuracy
from testing.shards import Shard
from tests.threat_specification.attacks.linear import directions
from tests.threat_specification.attacks.test_exact import HEADLINE, largest_margin, problem
from threat_specification import L2, AnchorSet, Intersection, Linf, ProjectedDisplacement
from threat_specification.attacks.search import Cell
from threat_specification.base import Threat

SHAPE = (1, 6, 6)


def test_a_grid_finds_the_same_optimum() -> None:
    """Two pixels, two hidden layers: a grid of 360,000 points misses the optimum by little and never passes it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1.0)
    images = torch.rand(6, 1, 1, 2)
    labels = net(images).argmax(1)
    anchors = AnchorSet(torch.rand(12, 1, 1, 2), torch.arange(12) % 3)
    threat, threshold, radius = ProjectedDisplacement(anchors=anchors), 0.4, 0.3
    options = {"seconds": 20, "attacks": ()}
    best = exact_robustness(net, images, labels, threat, threshold, radius, optimum=True, **options)
    quick = exact_robustness(net, images, labels, threat, threshold, radius, **options)
    steps = torch.linspace(-radius, radius, 601, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).view(-1, 2)
    weights = [layer.weight.detach().double() for layer in net if isinstance(layer, nn.Linear)]
    lipschitz = 2 * math.prod(float(weight.norm(2)) for weight in weights)
    seen = []
    for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        rows = torch.from_numpy(directions(anchors, image, label))
        points = image.view(2).double() + grid
        inside = ((grid @ rows.T).amax(1) <= threshold) & (points >= 0).all(1) & (points <= 1).all(1)
        with torch.no_grad():
            logits = net(points[inside].float().view(-1, 1, 1, 2))
        found = (logits.scatter(1, torch.full((len(logits), 1), label), -torch.inf).amax(1) - logits[:, label]).max()
        assert found - 1e-4 <= best.margin[row] <= found + 0.0015 * lipschitz
        if abs(best.margin[row]) > 1e-3:
            assert bool(best.broken[row]) == bool(quick.broken[row]) == (best.margin[row] > 0)
            assert bool(best.robust[row]) == bool(quick.robust[row]) == (best.margin[row] < 0)
        seen.append(bool(quick.broken[row]))
    assert 1 <= sum(seen) <= 5


def test_another_program_agrees_and_every_point_is_real() -> None:
    net, anchors, images, labels = problem()
    images, labels = images[5:13], labels[5:13]
    threat = ProjectedDisplacement(anchors=anchors)
    given = (threat, HEADLINE.threshold, HEADLINE.radius)
    alone = exact_robustness(net, images, labels, *given, attacks=())
    after = exact_robustness(net, images, labels, *given, attacks=("momentum_ce",))
    assert torch.equal(alone.broken, after.broken) and torch.equal(alone.robust, after.robust)
    assert {"clean", "bounds", "program"} == set(alone.by) and "attack" in after.by
    for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        clean_wrong = int(net(image[None]).argmax()) != label
        truth = largest_margin(net, anchors, image, label)
        assert bool(alone.broken[row]) == (clean_wrong or truth > 0) == (not bool(alone.robust[row]))
        for point in (alone.point[row], after.point[row]):
            change = (point - image).flatten().double().numpy()
            assert (directions(anchors, image, label) @ change).max() <= HEADLINE.threshold * (1 + 1e-5) + 1e-7
            assert abs(change).max() <= HEADLINE.radius * (1 + 1e-5) + 1e-7 and point.min() >= 0 and point.max() <= 1
            assert (int(net(point[None]).argmax()) != label) == bool(alone.broken[row])
        if not clean_wrong:
            assert (alone.margin[row] > 0) == alone.broken[row] and alone.margin[row] >= min(truth, 0) - 1e-4
    rushed = exact_robustness(net, images, labels, *given, seconds=1e-4, attacks=())
    assert "" in rushed.by and not (rushed.robust & ~alone.robust).any() and not (rushed.broken & ~alone.broken).any()
    undecided = torch.tensor([by == "" for by in rushed.by])
    assert not (undecided & (rushed.robust | rushed.broken)).any() and (rushed.margin[undecided] > 0).all()


def test_no_program_is_set_up_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 500 anchors and 10 classes an image took ten times its limit."""
    net, anchors, images, labels = problem()
    given = (net, images[5:13], labels[5:13], ProjectedDisplacement(anchors=anchors), HEADLINE.threshold)
    calls: list[Any] = []
    largest = Program.largest
    monkeypatch.setattr(Program, "largest", lambda *args: calls.append(args) or largest(*args))
    rushed = exact_robustness(*given, HEADLINE.radius, seconds=1e-9, attacks=(), programs=0)
    assert "" in rushed.by and not calls
    exact_robustness(*given, HEADLINE.radius, attacks=())
    assert calls


def test_a_set_that_no_member_bounds_outside_its_mask_is_attacked_and_proven_there() -> None:
    """Proofs were of a smaller set than the attacked one, which left images proven that are broken."""
    torch.manual_seed(0)
    anchors = AnchorSet(torch.rand(12, *SHAPE), torch.arange(12) % 3)
    masks = [torch.zeros(1, *SHAPE, dtype=torch.bool) for _ in range(2)]
    masks[0][..., 1:5, 1:4] = masks[1][..., 2:5, 2:5] = True
    free, other = (
        ProjectedDisplacement(
            anchors=anchors,
            segmented=True,
            mask_source=lambda images, mask=mask: mask.expand(len(images), -1, -1, -1),
            background="free",
        )
        for mask in masks
    )
    images = 0.3 + 0.4 * torch.rand(4, *SHAPE)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3))
    labels = net(images).argmax(1)
    expected = exact_robustness(net, images, labels, free, 0.1, 0.03, attacks=())
    assert expected.broken.all()
    for threat in (Intersection([(free, 1.0)]), Intersection([(free, 1.0), (other, 1.0)])):
        found = exact_robustness(net, images, labels, threat, 0.1, 0.03, attacks=())
        assert torch.equal(found.broken, expected.broken) and torch.equal(found.robust, expected.robust)
        assert not certified_robustness(net, images, labels, threat, 0.1, 0.03).robust.any()
        assert robust_accuracy(net, images, labels, threat, 0.1, 0.03, attacks=["momentum_ce"]) == 0
        bound, cell = threat.bind(images[:1], labels[:1]), Cell(0.1, 0.03)
        lower, upper = bound.bounds((-images[:1]).clamp_min(-0.03), (1 - images[:1]).clamp_max(0.03))
        unbounded = ~(masks[0] | masks[1]) if len(threat.members) == 2 else ~masks[0]
        assert torch.equal((upper - lower > 0.5), unbounded) and (upper - lower)[unbounded].min() == 1
        point = bound.project(torch.randn(1, *SHAPE), 0.1, lower, upper)
        region, at = region_of(bound, cell), (images[:1] + point).flatten().double().numpy()
        assert (region.lower <= at).all() and (at <= region.upper).all() and abs(point).max() > 0.3


def forms() -> dict[str, tuple[Threat, dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(2)
    anchors = AnchorSet(torch.rand(12, *SHAPE, generator=generator), torch.arange(12) % 4)
    weights = 0.2 + torch.rand(4, 4, generator=generator)
    masks = torch.zeros(1, *SHAPE, dtype=torch.bool)
    masks[..., 1:5, 1:4] = True
    of = lambda **options: ProjectedDisplacement(anchors=anchors, **options)  # noqa: E731
    segmented = {name: (of(segmented=True, background=name), {"masks": masks}) for name in ("frozen", "radius", "free")}
    return {
        "PD": (of(), {}),
        "PD-W": (of(weighted=True, class_weights=weights), {}),
        "PD-T": (of(tangents="brightness,blur"), {}),
        "PD and Linf": (Intersection([(of(), 2.0), (Linf(), 0.5)]), {}),
        "Linf": (Linf(), {}),
        **{f"PD-S, {name}": given for name, given in segmented.items()},
        "PD-S, free, alone in an intersection": (Intersection([(segmented["free"][0], 1.0)]), {"masks": masks}),
    }


def test_the_point_of_an_optimum_is_the_optimum() -> None:
    """Here the class with the largest bound can win, and another one wins by more."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
    images = torch.rand(4, 1, 4, 4)
    anchors = AnchorSet(torch.rand(20, 1, 4, 4), torch.arange(20) % 5)
    labels = net(images).argmax(1)
    part, threat = slice(1, 2), ProjectedDisplacement(anchors=anchors).prepare()
    found = exact_robustness(net, images[part], labels[part], threat, 0.5, 0.3, attacks=(), optimum=True)
    with torch.no_grad():
        logits = net(found.point)[0]
    own = logits[labels[part]].clone()
    logits[labels[part]] = -math.inf
    assert found.broken and float(found.margin) == pytest.approx(float(logits.max() - own), abs=1e-3)


@pytest.mark.parametrize("name", forms())
def test_half_spaces_and_box_are_the_set(name: str) -> None:
    """Points just inside and just outside, by the threat's own value and by loops over pixels."""
    threat, context = forms()[name]
    generator = torch.Generator().manual_seed(5)
    x, label = 0.2 + 0.6 * torch.rand(1, *SHAPE, generator=generator), torch.tensor([1])
    bound, cell = threat.bind(x, label, **context), Cell(0.2, 0.15)
    region = region_of(bound, cell)
    mask = context["masks"].flatten() if context else torch.ones(36, dtype=torch.bool)
    inside = outside = 0
    for _ in range(60):
        delta = torch.randn(1, *SHAPE, generator=generator)
        if "frozen" in name:
            delta = delta * context["masks"]
        counted = delta.flatten()[mask] if "free" in name else delta.flatten()
        border = min(cell.threshold / float(bound.evaluate(delta)), cell.radius / float(counted.abs().max()))
        pixel = min(float(torch.where(delta > 0, (1 - x) / delta, -x / delta).nan_to_num(9, 9, 9).min()), border)
        for factor, holds in ((0.999, True), (1.001, pixel < border)):
            if not holds and pixel < border:
                continue
            p = (x + delta * factor * (border if factor > 1 and pixel == border else pixel)).flatten().double().numpy()
            fits = (region.lower <= p).all() and (p <= region.upper).all() and (region.rows @ p <= region.limits).all()
            if factor > 1 and pixel < border:
                assert not fits or p.max() <= 1 + 1e-6
                continue
            assert fits == (factor < 1)
            inside, outside = inside + (factor < 1), outside + (factor > 1)
    assert inside == 60 and outside >= 10
    if "frozen" in name:
        assert (region.lower == region.upper).sum() == 36 - int(mask.sum())


class WithMask(nn.Sequential):
    """A network whose forward() has another argument."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(36, 4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x)


def test_what_it_cannot_describe_is_named() -> None:
    images, labels = torch.rand(2, *SHAPE), torch.tensor([0, 1])
    flat = [nn.Flatten(), nn.Linear(36, 4)]
    cases = [
        (nn.Sequential(*flat, nn.Sigmoid()), Linf(), "layer 2, Sigmoid"),
        (nn.Sequential(*flat, nn.Softmax(1)), Linf(), "layer 2, Softmax"),
        (WithMask(), Linf(), r"argument mask of forward\(\)"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, ceil_mode=True), *flat[:1], nn.Linear(8, 4)), Linf(),
         "layer 1, MaxPool2d"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 21_000), nn.ReLU(), nn.Linear(21_000, 4)), Linf(), "small network"),
        (nn.Sequential(*flat), L2(), "threat of half-spaces"),
    ]  # fmt: skip
    for model, threat, told in cases:
        with pytest.raises(ValueError, match=told):
            exact_robustness(model, images, labels, threat, 0.1, attacks=())


def test_a_linear_model_in_a_ball_is_decided_by_its_bounds() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    images = 0.3 + 0.4 * torch.rand(12, *SHAPE)
    with torch.no_grad():
        logits = net(images)
        labels = logits.argmax(1)
        difference = net[1].weight[None] - net[1].weight[labels][:, None]
        margins = logits - logits.gather(1, labels[:, None]) + 0.02 * difference.abs().sum(2)
    best = margins.scatter(1, labels[:, None], -torch.inf).amax(1)
    found = exact_robustness(net, images, labels, Linf(), 0.02, attacks=())
    assert torch.equal(found.broken, best > 0) and torch.equal(found.robust, best < 0)
    assert 2 <= int(found.broken.sum()) <= 10 and set(found.by) == {"bounds", "program"}


def test_of_several_points_the_one_of_largest_margin_is_kept() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
        net[1].bias.copy_(torch.tensor([0.5, 0.0]))
    images, labels = torch.tensor([[[[0.4]]]]), torch.tensor([0])
    attacked = AttackEvaluation(net, Linf(), Cell(0.4, math.inf), {}, 1, 0)
    shard = Shard(0, images, labels, torch.arange(1))
    case = Case(attacked, shard, Network.read(net, (1, 1, 1)), math.inf, True, 0)
    for value, best in ((0.45, 0.4), (0.7, 0.7), (0.6, 0.7), (0.75, 0.75)):
        assert case._verified(numpy.array([value])) == (value > 0.5)
        assert float(case.best) == pytest.approx(best)


def test_many_small_weights_are_no_proof() -> None:
    """A linear program leaves a variable where it is if moving it adds less than 1e-7; many of these decide here."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight[1] = torch.full((784,), 9e-8).index_fill(0, torch.arange(10), 1e-3)
        net[1].bias.copy_(torch.tensor([0.0, -0.01 - 3e-5]))
    images, anchors = torch.zeros(1, 1, 28, 28), AnchorSet(torch.ones(1, 1, 28, 28), torch.tensor([1]))
    threat = ProjectedDisplacement(anchors=anchors).prepare()
    point = torch.full((784,), 0.75).index_fill(0, torch.arange(10), 1.0).view_as(images)
    assert net(point).argmax() == 1 and float(threat.evaluate(images, torch.tensor([0]), point)) < 1.6
    found = exact_robustness(net, images, torch.tensor([0]), threat, 1.6, math.inf, attacks=())
    assert not found.robust


def test_weights_that_the_solver_takes_as_zero_are_no_proof() -> None:
    """HiGHS leaves out entries of at most 1e-9; 12544 of these, multiplied by the next layer, decide here."""
    size, weight = 12544, 9.5e-10
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        net[1].weight.fill_(weight)
        net[1].bias.fill_(-0.4 * weight * size)
        net[3].weight.copy_(torch.tensor([[0.0], [1 / (weight * size)]]))
        net[3].bias.copy_(torch.tensor([0.0, -0.1]))
    images = torch.full((1, 1, 112, 112), 0.3)
    assert net(images).argmax() == 0 and net(images + 0.3).argmax() == 1
    assert not exact_robustness(net, images, torch.tensor([0]), Linf(), 0.3, attacks=(), seconds=10).robust


def test_a_network_without_an_answer_is_no_broken_one() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    net[1].weight.data[0, 0] = math.nan
    with pytest.raises(RunError, match=r"not finite .* for 3 of 3 images"):
        exact_robustness(net, torch.rand(3, 1, 2, 2), torch.zeros(3).long(), Linf(), 0.1)


class Whole(nn.Module):
    """A model of whole numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.int32).to(torch.float32).flatten(1)


class Steps(nn.Module):
    """A model of whole steps, which are affine in nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.div(x, 0.25, rounding_mode="floor").flatten(1)


class Half(nn.Module):
    """A model that rounds to 16 bits on the way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(2, dtype=torch.float16).flatten(1)


class InPlace(nn.Module):
    """A shortcut around a ReLU that changes its input, so that the shortcut too has what is after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x.flatten(1))
        return self.last(self.relu(x) + x)


def test_what_the_program_would_pass_over_is_refused() -> None:
    hooked = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    hooked[1].register_forward_hook(lambda layer, given, answer: -answer)
    for model in (hooked, Whole(), Steps(), Half()):
        with pytest.raises(UsageError, match="a hook" if model is hooked else "expected linear"):
            Network.read(model, (1, 2, 2))
    torch.manual_seed(0)
    with pytest.raises(UsageError, match="not those of the layers that were read"):
        Network.read(InPlace(), (1, 2, 2))


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_margins_that_float32_does_not_see_are_no_proof(offset: float) -> None:
    """Beside large logits a margin of 6e-5 is rounded away, so that the label loses a tie."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).requires_grad_(False)
    net[1].bias += offset
    images = torch.rand(20, 1, 8, 8) * 0.6 + 0.2
    labels = net(images).argmax(1)
    slope = (net[1].weight[1] - net[1].weight[0]).double()
    lead = (images.flatten(1).double() @ slope + net[1].bias[1].double() - net[1].bias[0].double()).abs()
    radii = (lead - 6e-5) / slope.abs().sum()
    proven = 0
    for image, label, radius in zip(images, labels, radii.tolist(), strict=True):
        if not 0 < radius < 0.2:
            continue
        found = exact_robustness(net, image[None], label[None], Linf(), radius, attacks=())
        towards = (1 - 2 * int(label)) * slope.sign() * radius * (1 - 2e-5)
        wrong = net((image.flatten() + towards).float().view(1, 1, 8, 8)).argmax() != label
        assert not (bool(found.robust) and bool(wrong))
        proven += int(found.robust)
    assert proven > 0 or offset > 0


def test_a_frozen_background_stays_in_an_intersection() -> None:
    """The box of an intersection let it change: images were called broken whose object is as it was."""
    generator = torch.Generator().manual_seed(0)
    anchors = AnchorSet(torch.rand(6, 1, 4, 4, generator=generator), torch.arange(6) % 3)
    frozen = ProjectedDisplacement(anchors=anchors, segmented=True, mask_source="center")
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).requires_grad_(False)
    images = torch.rand(12, 1, 4, 4, generator=generator)
    labels = net(images).argmax(1)
    by_radius = exact_robustness(net, images, labels, frozen, 0.3, radius=0.05, attacks=())
    both = exact_robustness(net, images, labels, Intersection([(frozen, 0.3), (Linf(), 0.05)]), 1.0, attacks=())
    assert 0 < int(by_radius.broken.sum()) < 12
    assert torch.equal(both.robust, by_radius.robust) and torch.equal(both.broken, by_radius.broken)


@pytest.mark.parametrize("layer", [1, 3])
def test_infinite_biases_are_refused_and_bounds_that_are_no_numbers_prove_nothing(
    layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias of minus infinity takes a class or a unit away; differences of infinities are no numbers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 4))
    net[layer].bias.data[3] = -math.inf
    images = torch.rand(3, *SHAPE)
    labels = net(images).argmax(1)
    asked = (net, images, labels, Linf(), 0.5, 0.5)
    with pytest.raises(UsageError, match="expected finite weights"):
        exact_robustness(*asked, attacks=())
    monkeypatch.setattr(Network, "_refuse_infinite", lambda network: None)
    with numpy.errstate(all="ignore"):
        assert not bool(exact_robustness(*asked, seconds=5, attacks=()).robust.any())
        assert bool(exact_robustness(*asked, seconds=5).broken.all())
