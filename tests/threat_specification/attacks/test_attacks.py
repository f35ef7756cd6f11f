"""Attacks against linear classifiers, whose optimum is a linear program, and against what they must leave alone."""

from __future__ import annotations

import copy

import numpy
import pytest
import torch
from torch import Tensor, nn

from tests.threat_specification.attacks.linear import Linear, best_margin, directions, problem, smallest_gauge
from threat_specification import L2, AnchorSet, Intersection, Linf, ProjectedDisplacement
from threat_specification.attacks.apgd import checkpoints
from threat_specification.attacks.base import AttackResult, AttackSet, Task, input_gradient
from threat_specification.attacks.losses import LOSSES
from threat_specification.attacks.minimal_gauge import searched_gauges
from threat_specification.attacks.pgd import descend, falling
from threat_specification.attacks.registry import ATTACKS, attacks_named
from threat_specification.attacks.search import Cell, Search

THRESHOLD, RADIUS, STEPS = 0.1, 0.15, 40


def both(anchors, images: Tensor, labels: Tensor, threshold: float = THRESHOLD, radius: float = RADIUS) -> AttackSet:
    """{PD <= threshold, l-inf <= radius} as the runners attack it."""
    threat = Intersection([(ProjectedDisplacement(anchors=anchors), threshold), (Linf(), radius)])
    return AttackSet.within(threat.bind(images, labels), 1.0, radius)


def attack(name: str, model, labels: Tensor, allowed: AttackSet, steps: int = STEPS, **changes) -> AttackResult:
    index = torch.arange(len(labels)) + 50
    robust = torch.ones(len(labels), dtype=torch.bool)
    values = {"seed": 3, "index": index, "robust": robust} | changes
    return ATTACKS[name](Task(model, labels, allowed, steps=steps, **values))


def search(threat, model, images: Tensor, labels: Tensor, cell: Cell, names=()) -> Search:
    """The loop of a run: those attacks in turn, else the ensemble."""
    found = Search(model, threat.bind(images, labels), labels, torch.arange(len(labels)), cell, STEPS, seed=0)
    found.attack(cell, attacks_named(names, model(images[:1]).shape[1]))
    return found


def gauges(model: Linear, anchors, images: Tensor, labels: Tensor) -> Tensor:
    """The smallest gauge of each example by linear programs."""
    found = [smallest_gauge(model, anchors, x, int(y), THRESHOLD, RADIUS) for x, y in zip(images, labels, strict=True)]
    return torch.tensor(found)


@pytest.mark.parametrize(
    ("num_classes", "count", "names"),
    [(2, 24, ["standard"]), (5, 24, ["standard"]), (10, 12, ["standard"]), (5, 12, ["lean"])],
)
def test_an_ensemble_breaks_what_a_linear_program_can_break(num_classes: int, count: int, names: list[str]) -> None:
    """In a set in which half of the examples can be broken, all of those are, but for margins within 2 % of 0."""
    model, anchors, images, labels = problem(num_classes, count, seed=num_classes)
    t = float(gauges(model, anchors, images, labels).median())
    clean = LOSSES["margin"](model(images).detach(), labels, None).tolist()
    cell = Cell(t * THRESHOLD, t * RADIUS)
    robust = search(ProjectedDisplacement(anchors=anchors), model, images, labels, cell, names).robust(cell)
    for x, y, margin, broken in zip(images, labels, clean, (~robust).tolist(), strict=True):
        best = best_margin(model, anchors, x, int(y), t * THRESHOLD, t * RADIUS)
        if abs(best) > 0.02 * (best - margin):
            assert broken == (best > 0)
    assert count / 3 <= int((~robust).sum()) <= count * 2 / 3


@pytest.mark.parametrize("num_classes", [2, 5, 10])
def test_minimal_gauge_against_a_linear_program(num_classes: int) -> None:
    model, anchors, images, labels = problem(num_classes, count=12, seed=num_classes)
    allowed = both(anchors, images, labels)
    found = attack("minimal_gauge", model, labels, allowed)
    smallest = gauges(model, anchors, images, labels)
    ratio, reachable = allowed.bound.evaluate(found.delta) / smallest, smallest < 3
    assert bool(found.success[reachable].all())
    assert float(ratio[reachable].min()) > 1 - 1e-4
    assert float(ratio[reachable].max()) < 1.02


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_isotropic_balls_in_closed_form(norm: str) -> None:
    """Far from the pixel box the largest margin towards a class is its margin plus radius * dual norm of the gain."""
    model, _, images, _ = problem(4, count=40, seed=1)
    images = 0.5 + 0.1 * (images - 0.5)
    labels = model(images).argmax(1)
    radius = {"Linf": 0.006, "L2": 0.03}[norm]
    threat = {"Linf": Linf, "L2": L2}[norm]()
    gain = model.weight.unsqueeze(0) - model.weight[labels].unsqueeze(1)
    dual = gain.norm(p=1 if norm == "Linf" else 2, dim=2)
    logits = model(images)
    towards = logits - logits.gather(1, labels.view(-1, 1)) + radius * dual
    best = towards.scatter(1, labels.view(-1, 1), -torch.inf).amax(1)
    cell = Cell(radius, radius)
    broken = ~search(threat, model, images, labels, cell, ["apgd_ce", "apgd_t_dlr"]).robust(cell)
    clear = best.abs() > 0.02 * (best - LOSSES["margin"](logits, labels, None))
    assert broken[clear].equal((best > 0)[clear])
    assert bool(broken.any()) and not bool(broken.all())


@pytest.mark.parametrize("name", list(ATTACKS))
def test_every_point_is_in_the_set_and_breaks_what_it_says(name: str) -> None:
    model, anchors, images, labels = problem(5, count=12, seed=2)
    before = images.clone()
    found = attack(name, model, labels, both(anchors, images, labels))
    assert images.equal(before)
    perturbed = (images + found.delta).clamp(0, 1)
    assert (model(perturbed).argmax(1) != labels).equal(found.success)
    for image, label, delta in zip(images, labels, found.delta, strict=True):
        d, x = delta.flatten().double().numpy(), image.flatten().double().numpy()
        assert (x + d >= -1e-7).all() and (x + d <= 1 + 1e-7).all()
        if name != "minimal_gauge":  # its points say how large the set must be
            assert numpy.abs(d).max() <= RADIUS * (1 + 1e-6)
            assert (directions_of(anchors, image, label) @ d).max() <= THRESHOLD * (1 + 1e-5)


def directions_of(anchors, image: Tensor, label: Tensor) -> numpy.ndarray:
    return directions(anchors, image, int(label))


@pytest.mark.parametrize("name", list(ATTACKS))
def test_the_model_is_left_as_it_was(name: str) -> None:
    model, anchors, images, labels = problem(5, count=6, seed=2)
    net = nn.Sequential(model, nn.Dropout(0.0))
    net.train()
    net[1].eval()
    model.bias.requires_grad_(False)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    attack(name, net, labels, both(anchors, images, labels), steps=3)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training and not net[1].training
    assert model.weight.requires_grad and not model.bias.requires_grad
    assert all(value.equal(weights[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", list(ATTACKS))
def test_only_those_standing_are_attacked_and_batches_do_not_matter(name: str) -> None:
    model, anchors, images, labels = problem(5, count=12, seed=4)
    whole = attack(name, model, labels, both(anchors, images, labels), steps=8)
    robust = torch.arange(12) % 3 != 0
    some = attack(name, model, labels, both(anchors, images, labels), steps=8, robust=robust)
    assert not bool(some.success[~robust].any())
    assert int(some.forwards[~robust].sum()) == int(some.backwards[~robust].sum()) == 0
    assert some.success[robust].equal(whole.success[robust])
    part = slice(4, 9)
    index = torch.arange(12)[part] + 50
    alone = attack(
        name,
        model,
        labels[part],
        both(anchors, images[part], labels[part]),
        steps=8,
        index=index,
        robust=torch.ones(5).bool(),
    )
    assert alone.success.equal(whole.success[part])
    assert torch.allclose(alone.delta, whole.delta[part], atol=1e-3)


class Steps(nn.Module):
    """Gradients are 0 everywhere: logits are rounded."""

    def __init__(self, inner: Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return (self.inner(images) * 50).round() / 50


def test_search_without_gradients_breaks_masked_models() -> None:
    model, anchors, images, labels = problem(5, count=24, seed=5)
    masked = Steps(model)
    labels = masked(images).argmax(1)
    allowed = both(anchors, images, labels, threshold=0.3, radius=0.3)
    with_gradients = attack("apgd_ce", masked, labels, allowed).success
    without = attack("random_search", masked, labels, allowed).success
    assert int(without.sum()) > 2 * int(with_gradients.sum()) + 4


def test_the_post_hoc_baseline_is_weaker_than_what_looks_inside() -> None:
    model, anchors, images, labels = problem(5, count=24, seed=6)
    allowed = both(anchors, images, labels)
    inside = attack("apgd_ce", model, labels, allowed).success
    after = attack("post_hoc", model, labels, allowed).success
    assert int(inside.sum()) > int(after.sum())
    assert not bool((after & ~inside).any())


class Confident(nn.Module):
    """Logits so far apart that the gradient of the cross-entropy is too small to be squared."""

    def __init__(self, inner: Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return 300 * self.inner(images)


class Severed(Linear):
    """Cuts the graph: no gradient at all."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


class Poisoned(Linear):
    """Right answers, gradients of NaN."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + (images - images).sqrt().flatten(1).sum(1, keepdim=True)


def test_small_gradients_are_followed() -> None:
    model, anchors, images, labels = problem(5, count=24, seed=5)
    allowed = both(anchors, images, labels, threshold=0.3, radius=0.3)
    assert int(attack("apgd_ce", model, labels, allowed).success.sum()) == 24
    assert int(attack("apgd_ce", Confident(model), labels, allowed).success.sum()) >= 12
    assert int(attack("apgd_t_dlr", Confident(model), labels, allowed).success.sum()) == 24


@pytest.mark.parametrize("name", list(ATTACKS))
@pytest.mark.parametrize("kind", [Severed, Poisoned])
def test_models_without_usable_gradients_do_not_stop_an_attack(kind: type[Linear], name: str) -> None:
    _, anchors, images, _ = problem(5, count=4, seed=5)
    model = kind(5, seed=5)
    labels = model(images).argmax(1)
    found = attack(name, model, labels, both(anchors, images, labels), steps=3)
    assert bool(found.delta.isfinite().all())


def test_a_radius_in_the_bounds_alone_holds_for_the_minimal_gauge_too() -> None:
    model, anchors, images, labels = problem(5, count=24, seed=5)
    allowed = AttackSet.within(ProjectedDisplacement(anchors=anchors).bind(images, labels), 0.1, 0.15)
    found = attack("minimal_gauge", model, labels, allowed)
    assert bool(found.success.any())
    assert float(found.delta.abs().max()) <= 0.15 * (1 + 1e-6)


def test_checkpoints_of_the_paper() -> None:
    """p = 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of 100 steps."""
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_descent_with_momentum_is_its_recursion_in_float64() -> None:
    """With the pixel box alone: x <- clip(x + s_k D^1/2 v / |v|), v <- m v + g / |g|, s_k falling linearly."""
    torch.manual_seed(0)
    images, labels = 0.3 + 0.4 * torch.rand(6, 1, 4, 4), torch.arange(6) % 3
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).requires_grad_(False)
    net[1].weight.mul_(8)  # so curved that gradients turn
    apart = 100.0 * nn.functional.one_hot(labels, 3)  # nothing breaks, and the margin's gradient does not vanish
    asked: list[Tensor] = []

    def model(inputs: Tensor) -> Tensor:
        asked.append(inputs.detach())
        return net(inputs) + apart

    allowed = AttackSet.within(L2().bind(images, labels), 1e3, float("inf"))
    sizes, robust = torch.full((6, 1, 1, 1), 0.1), torch.ones(6, dtype=torch.bool)

    def gradient_at(delta: Tensor) -> tuple[Tensor, Tensor]:
        inputs = (images + delta).requires_grad_(True)
        return input_gradient(LOSSES["margin"](model(inputs), labels, None).sum(), inputs), robust

    model(images + descend(gradient_at, allowed, torch.zeros_like(images), 4, sizes, momentum=0.9, schedule=falling))
    exact, point = copy.deepcopy(net).double(), images.double()
    total = torch.zeros_like(point)
    for step, seen in enumerate(asked):
        assert torch.allclose(seen.double(), point, atol=1e-5), step
        inputs = point.clone().requires_grad_(True)
        logits = exact(inputs)
        others = logits.masked_fill(apart > 0, -torch.inf).amax(1)
        (gradient,) = torch.autograd.grad((others - logits.gather(1, labels.view(-1, 1)).squeeze(1)).sum(), inputs)
        total = 0.9 * total + gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        unit = total / total.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        point = (point + 0.1 * (2 * (4 - step) / 5) * 4 * unit).clamp(0, 1)  # 4 is the root of 16 pixels
    assert len(asked) == 5


def trained_on_digits() -> tuple[Tensor, Tensor, nn.Module]:
    """All images and labels, and a small net trained on the first 1,437."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(data.target).long()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images[:1437]), labels[:1437]).backward()
        optimizer.step()
    return images, labels, net


def test_our_apgd_agrees_with_the_installed_one() -> None:
    """Cross-entropy, l-inf, on a small net trained on digits; 360 test images, three seeds."""
    from pyautoattack.autopgd_base import APGDAttack

    images, labels, net = trained_on_digits()
    x, y = images[1437:], labels[1437:]
    right = net(x).argmax(1) == y
    allowed = AttackSet.within(Linf().bind(x, y), 0.1, 0.1)
    left_by_theirs, left_by_ours = [], []
    for seed in range(3):
        theirs = APGDAttack(net, n_iter=50, norm="Linf", eps=0.1, seed=seed, loss="ce", device="cpu")
        left_by_theirs.append(float((net(theirs.perturb(x, y)).argmax(1) == y).float().mean()))
        ours = attack("apgd_ce", net, y, allowed, steps=50, robust=right, index=torch.arange(len(y)), seed=seed)
        left_by_ours.append(float((right & ~ours.success).float().mean()))
    assert 0.05 < numpy.mean(left_by_theirs) < 0.95
    assert abs(numpy.mean(left_by_ours) - numpy.mean(left_by_theirs)) <= 0.005


def test_the_gauge_curve_is_not_above_apgd_on_a_trained_net() -> None:
    """At the set that APGD breaks about half of the examples in, the curve leaves no more robust than APGD."""
    images, labels, net = trained_on_digits()
    x, y = images[1437:1500], labels[1437:1500]
    right = net(x).argmax(1) == y
    anchors = AnchorSet(images[:60], labels[:60])
    allowed = both(anchors, x, y, threshold=0.2, radius=0.15)
    left = int((right & ~attack("apgd_ce", net, y, allowed, robust=right).success).sum())
    found = attack("minimal_gauge", net, y, allowed, robust=right)
    gauge = torch.where(found.success, allowed.bound.evaluate(found.delta), torch.inf)
    assert 3 < left < 60
    assert int((right & (gauge > 1 + 1e-5)).sum()) <= left + 2


@pytest.mark.parametrize("steps", [1, 3, 10, 25])
def test_the_smallest_gauge_that_can_be_found_grows_as_steps_get_fewer(steps: int) -> None:
    """Of a model that any change misleads, every step finds a smaller set, down to the stated one."""
    image = torch.full((1, 1, 4, 4), 0.5)

    def model(images: Tensor) -> Tensor:
        changed = (images - image + 1e-9).abs().flatten(1).sum(1)
        return torch.stack([torch.full_like(changed, 1e-6), changed], 1)

    threat = Intersection([(Linf(), 0.1), (Linf(), 0.1)])
    allowed = AttackSet.within(threat.bind(image, torch.tensor([0])), 1.0, 0.1)
    found = attack("minimal_gauge", model, torch.tensor([0]), allowed, steps=steps)
    reached = float(found.delta.abs().max()) / 0.1
    smallest, largest = searched_gauges(steps)
    assert found.success.all() and smallest <= reached * (1 + 1e-5) and reached <= largest
    assert reached == pytest.approx(smallest, rel=0.05)


def test_the_search_without_gradients_keeps_what_is_better() -> None:
    """On a set too small to break anything it gets most of the way to the linear program's margin."""
    model, anchors, images, labels = problem(5, count=12, seed=5)
    threshold, radius = 0.02, 0.03
    found = attack("random_search", model, labels, both(anchors, images, labels, threshold, radius))
    clean = LOSSES["margin"](model(images).detach(), labels, None)
    best = [best_margin(model, anchors, x, int(y), threshold, radius) for x, y in zip(images, labels, strict=True)]
    gained = (found.loss - clean) / (torch.tensor(best) - clean)
    assert float(gained.max()) <= 1 + 1e-4
    assert float(gained.median()) > 0.6


class Bowl(nn.Module):
    """The loss is largest at a mean pixel value of its own for each image, inside the set; nothing breaks."""

    def forward(self, images: Tensor) -> Tensor:
        target = 0.5 + 0.04 * images.new_tensor([1.0, -1.0, 0.5, -0.3]).view(-1, 1, 1, 1)
        value = -((images - target) ** 2).flatten(1).sum(1)
        return torch.stack([torch.full_like(value, 9.0), value], 1)


@pytest.mark.parametrize("threat", [Linf(), L2()])
def test_apgd_closes_in_on_an_optimum_inside_the_set(threat) -> None:
    """Its first steps jump over it; halved ones do not."""
    images, labels = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    allowed = AttackSet.within(threat.bind(images, labels), 0.4, 0.1)
    found = attack("apgd_margin", Bowl(), labels, allowed, steps=100)
    target = 0.04 * torch.tensor([1.0, -1.0, 0.5, -0.3])
    assert float((found.delta - target.view(-1, 1, 1, 1)).abs().max()) < 0.006
