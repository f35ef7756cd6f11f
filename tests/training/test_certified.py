"""Certified training: its worst logits by loops, its ramps, its parts, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foundations.step import Step
from tests.training.sources import IMAGES, LABELS, Whole, net, state_of
from training.batch import Batch
from training.certified import IntervalLoss, read, worst_logits
from training.objectives import Parts


def plain() -> nn.Sequential:
    """Without batch normalisation, whose statistics no interval describes."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 5), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(5, 3))


def by_loops(model: nn.Sequential, image: Tensor, label: int, radius: float) -> list[float]:
    """0 for the label, and the largest other logits less that of the label, from intervals of the last hidden layer."""
    low, high = ((image + sign * radius).clamp(0, 1).unsqueeze(0) for sign in (-1, 1))
    convolution, linear, last = model[0], model[4], model[6]
    up, down = convolution.weight.clamp_min(0), convolution.weight.clamp_max(0)
    pad = {"bias": None, "padding": 1}
    bias = convolution.bias.view(1, -1, 1, 1)
    ends = [
        functional.conv2d(first, up, **pad) + functional.conv2d(second, down, **pad) + bias
        for first, second in ((low, high), (high, low))
    ]
    low, high = (functional.max_pool2d(end.clamp_min(0), 2).flatten() for end in ends)
    up, down = linear.weight.clamp_min(0), linear.weight.clamp_max(0)
    low, high = up @ low + down @ high + linear.bias, up @ high + down @ low + linear.bias
    low, high = low.clamp_min(0), high.clamp_min(0)
    found = []
    for k in range(3):
        row, added = last.weight[k] - last.weight[label], last.bias[k] - last.bias[label]
        found.append(float((row.clamp_min(0) * high + row.clamp_max(0) * low).sum() + added))
    return found


@torch.no_grad()
def test_worst_logits_are_those_of_loops() -> None:
    model = plain()
    for radius in (0.0, 0.05, 0.3):
        found = worst_logits(read(model), radius, IMAGES, LABELS)
        for row, (image, label) in enumerate(zip(IMAGES, LABELS.tolist(), strict=True)):
            assert found[row].tolist() == pytest.approx(by_loops(model, image, label, radius), abs=1e-5)
    logits = model(IMAGES)
    clean = worst_logits(read(model), 0.0, IMAGES, LABELS)
    assert torch.allclose(clean, logits - logits.gather(1, LABELS.view(-1, 1)), atol=1e-5)


def test_no_image_within_the_radius_is_worse() -> None:
    model, generator = plain(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        worst = worst_logits(read(model), 0.1, IMAGES, LABELS)
        for number in range(200):
            noise = 2 * torch.rand(IMAGES.shape, generator=generator) - 1
            logits = model((IMAGES + 0.1 * (noise.sign() if number % 2 else noise)).clamp(0, 1))
            assert (logits - logits.gather(1, LABELS.view(-1, 1)) <= worst + 1e-6).all()


def test_radius_and_weights_go_in_equal_parts() -> None:
    model, batch = plain(), Batch(Whole())
    loss = IntervalLoss(read(model), radius=0.2, clean_weight=0.25, steps=4)
    objective = Parts(certify=loss)
    for iteration, grown in ((0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)):
        clean, certified = objective.make(model, batch, Step(iteration, 0))
        assert (clean.name, certified.name) == ("clean", "certified")
        assert (clean.weight, certified.weight) == (pytest.approx(1 - 0.75 * grown), pytest.approx(0.75 * grown))
        worst = worst_logits(loss.network, 0.2 * grown, IMAGES, LABELS)
        expected = clean.weight * functional.cross_entropy(model(IMAGES), LABELS)
        expected = expected + certified.weight * functional.cross_entropy(worst, LABELS)
        scores = objective.score(model, [clean, certified])
        assert float(scores.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        assert float(scores.correct["certified"]) == pytest.approx(float((worst.argmax(1) == LABELS).float().mean()))
    at_once = IntervalLoss(read(model), radius=0.2, clean_weight=0.25, steps=0)(batch, Step(0, 0), [clean])
    assert at_once[1].weight == 0.75


def test_further_parts_keep_their_share() -> None:
    """Additions, such as those of N_aug, are beside the main parts as without certified training."""
    model, batch = plain(), Batch(Whole())
    loss = IntervalLoss(read(model), radius=0.1, clean_weight=0.5, steps=0)
    added = lambda batch, step: [loss(batch, step, [])[0]]  # noqa: E731
    parts = Parts(certify=loss, additions=added).make(model, batch, Step(0, 0))
    assert [part.weight for part in parts] == [0.25, 0.25, 0.25]


def test_its_gradient_is_that_of_finite_differences() -> None:
    model = plain().double()
    network, images = read(model), IMAGES.double()
    weight = model[0].weight

    def value() -> Tensor:
        return functional.cross_entropy(worst_logits(network, 0.1, images, LABELS), LABELS)

    (gradient,) = torch.autograd.grad(value(), weight)
    for place in ((0, 0, 1, 1), (1, 0, 0, 2)):
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * 1e-6
                sides.append(float(value()))
                weight[place] -= sign * 1e-6
        assert float(gradient[place]) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4)
    for layer in (0, 4, 6):
        assert torch.autograd.grad(value(), model[layer].weight)[0].abs().sum() > 0


def test_it_follows_the_weights_and_leaves_them() -> None:
    model = plain()
    network, before = read(model), state_of(model)
    first = worst_logits(network, 0.1, IMAGES, LABELS)
    assert all(torch.equal(value, before[name]) for name, value in state_of(model).items())
    with torch.no_grad():
        model[4].weight.mul_(2)
    assert not torch.allclose(first, worst_logits(network, 0.1, IMAGES, LABELS))


def test_what_it_cannot_train_is_named() -> None:
    with pytest.raises(ValueError, match="--certified_train: layer 2, BatchNorm1d: its statistics change"):
        read(net())
    with pytest.raises(ValueError, match="--certified_train: layer 1, Tanh"):
        read(nn.Sequential(nn.Flatten(), nn.Tanh()))
    with pytest.raises(ValueError, match="ends in a linear layer"):
        read(nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU()))
