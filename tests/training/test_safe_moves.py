"""The adversary that mixes safe changes beside its noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from foundations.step import Step
from tests.threat_specification.attacks.linear import directions
from tests.training.sources import ANCHORS, IMAGES, LABELS, Whole, net, some, state_of
from threat_specification import ProjectedDisplacement
from training.adversaries import MOVES_SEED, PGD, Growth
from training.batch import Batch

THRESHOLD, RADIUS, NOW = 0.8, 0.03, Step(3, 0)


def moves(images: Tensor, index: Tensor, seed: int) -> Tensor:
    """Brighter, mirrored, and mixed with grey by a share that depends on the row and the seed."""
    share = (0.2 + 0.1 * ((index + seed) % 5)).view(-1, 1, 1, 1)
    return torch.stack([(images + 0.15).clamp(0, 1), images.flip(3), (1 - share) * images + 0.5 * share], 1)


def adversary(**changes: object) -> PGD:
    threat = ProjectedDisplacement(anchors=ANCHORS)
    made = PGD("N_adv", threat, THRESHOLD, RADIUS, RADIUS, 5, seed=1, moves=moves)
    return replace(made, **changes)  # type: ignore[arg-type]


def loss(model: torch.nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return float(functional.cross_entropy(model(images), LABELS))


def test_it_finds_more_than_noise_alone_and_mixtures_alone() -> None:
    model, batch = net().eval(), Batch(Whole())
    before = state_of(model)
    clean, both = loss(model, IMAGES), loss(model, adversary()(model, batch, NOW).images)
    noise = loss(model, adversary(moves=None)(model, batch, NOW).images)
    mixture = loss(model, adversary(radius=0.0)(model, batch, NOW).images)
    assert both > max(noise, mixture) > clean and mixture > clean + 0.02
    assert all(torch.equal(value, before[name]) for name, value in state_of(model).items())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(("epoch", "factor"), [(0, 0.5), (1, 1.0)])
def test_its_images_are_in_the_set(epoch: int, factor: float) -> None:
    """In float64: noise around some mixture of the changes that were made for this step, inside the threat."""
    from scipy.optimize import linprog

    model, step = net().eval(), Step(7, epoch)
    images = adversary(growth=Growth(epochs=1))(model, Batch(Whole()), step).images
    made = moves(IMAGES, torch.arange(6), 1 + MOVES_SEED * 7)
    for i in range(6):
        change = (images[i].double() - IMAGES[i].double()).flatten()
        shifts = (made[i].double() - IMAGES[i].double()).flatten(1)
        assert (directions(ANCHORS, IMAGES[i], int(LABELS[i])) @ change.numpy()).max() <= THRESHOLD * (1 + 1e-5)
        # The smallest r with |change - c s| <= r for some weights c whose sum is at most the factor.
        ones = torch.ones(16, 1, dtype=torch.float64)
        left = torch.cat([torch.cat([-shifts.T, -ones], 1), torch.cat([shifts.T, -ones], 1)])
        total = torch.tensor([[1.0, 1, 1, 0]], dtype=torch.float64)
        right = torch.cat([-change, change, torch.tensor([factor], dtype=torch.float64)])
        solved = linprog([0, 0, 0, 1], torch.cat([left, total]).numpy(), right.numpy())
        assert solved.fun <= factor * RADIUS + 1e-6


def test_without_steps_it_mixes_at_random() -> None:
    """Without the model, unlike at the next step, and with more than noise."""
    model, batch = net().eval(), Batch(Whole())
    found = [adversary(steps=0)(model, batch, Step(iteration, 0)).images for iteration in (3, 4)]
    assert float((found[0] - IMAGES).abs().amax()) > 2 * RADIUS
    assert not torch.allclose(found[0], found[1], atol=0.01)
    assert torch.equal(found[0], adversary(steps=0)(net().train(), Batch(Whole()), NOW).images)


def test_what_an_image_gets_does_not_depend_on_its_batch() -> None:
    model, rows = net().eval(), torch.tensor([1, 4, 5])
    whole, part = (adversary()(model, batch, NOW).images for batch in (Batch(Whole()), Batch(some(rows))))
    assert torch.allclose(whole[rows], part, atol=1e-5)


def test_changes_are_new_at_every_step() -> None:
    seeds: list[int] = []

    def noted(images: Tensor, index: Tensor, seed: int) -> Tensor:
        seeds.append(seed)
        return moves(images, index, seed)

    for iteration in range(3):
        adversary(moves=noted)(net().eval(), Batch(Whole()), Step(iteration, 0))
    assert len(set(seeds)) == 3
