from __future__ import annotations

import pytest
import torch
from scipy.optimize import linprog

from foundations.hparams import ThreatHparams
from threat_specification import L2, AnchorSet, Linf, ProjectedDisplacement
from threat_specification.attacks.pgd import AttackSet, pgd
from threat_specification.attacks.random_numbers import uniform

SIDE, RADIUS = 6, 0.2
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(30, 1, SIDE, SIDE, generator=GENERATOR)
LABELS = torch.arange(30) % 3


class Linear(torch.nn.Module):
    """Logits W x + b of two classes: the optimal attack is known."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(SIDE * SIDE, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(2, SIDE * SIDE, generator=GENERATOR))
            self.layer.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


def attack(model: torch.nn.Module, threat: object, threshold: float, steps: int = 60) -> tuple:
    images = IMAGES[:12]
    labels = model(images).argmax(1)
    allowed = AttackSet.within(threat.bind(images, labels), threshold, RADIUS)  # type: ignore[attr-defined]
    start = allowed.between(uniform(0, torch.arange(12), 0, (1, SIDE, SIDE)))
    return images, labels, allowed, pgd(model, labels, allowed, start, steps, RADIUS / 8)


@pytest.mark.parametrize("threat", [Linf(), L2()])
def test_every_step_stays_inside(threat: object) -> None:
    model = Linear()
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    images, _, allowed, _ = attack(model, threat, 0.1, steps=10)
    for inputs in seen[1:]:
        assert float(inputs.min()) >= 0 and float(inputs.max()) <= 1
        assert float(allowed.bound.evaluate(inputs - images).max()) <= 0.1 * (1 + 1e-5)


def optimum(model: Linear, threat: ProjectedDisplacement, image: torch.Tensor, label: int, threshold: float) -> float:
    """Largest rise of the other class's logit over the label's inside the set, by linear programming."""
    weight = (model.layer.weight[1 - label] - model.layer.weight[label]).detach().double()
    flat = image.flatten().double()
    rows, limits = [], []
    for anchor, its_label in zip(threat.anchors.floats().double(), threat.anchors.labels.tolist(), strict=True):
        if its_label != label:
            rows.append(((anchor - flat) / (0.5 * (anchor - flat).square().sum())).numpy())
            limits.append(threshold)
    bounds = [(max(-RADIUS, -float(p)), min(RADIUS, 1 - float(p))) for p in flat]
    solution = linprog(-weight.numpy(), A_ub=rows, b_ub=limits, bounds=bounds)
    margin = float(weight @ flat + (model.layer.bias[1 - label] - model.layer.bias[label]).detach().double())
    return margin - solution.fun


@pytest.mark.parametrize("threshold", [0.05, 0.2, 10.0])
def test_found_and_missed_on_a_linear_model(threshold: float) -> None:
    """No success where a linear program proves there is none; success wherever the radius alone decides."""
    anchors = AnchorSet(IMAGES[15:], LABELS[15:] % 2)
    threat = ProjectedDisplacement(ThreatHparams(), anchors=anchors).prepare()
    model = Linear()
    images, labels, _, (broken, delta) = attack(model, threat, threshold)
    best = torch.tensor([optimum(model, threat, x, int(y), threshold) for x, y in zip(images, labels, strict=True)])
    assert not bool((broken & (best < -1e-4)).any())
    if threshold == 10.0:
        assert bool((broken == (best > 0)).all())
    assert bool((model(images + delta).argmax(1) != labels).eq(broken).all())


def test_no_traces_are_left_on_the_model_or_the_images() -> None:
    model = Linear().train()
    before = IMAGES.clone()
    model.layer.bias.requires_grad_(False)
    attack(model, Linf(), 0.1)
    assert model.training
    assert model.layer.weight.grad is None and model.layer.weight.requires_grad and not model.layer.bias.requires_grad
    assert IMAGES.equal(before)
