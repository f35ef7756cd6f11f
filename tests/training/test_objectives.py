"""Objectives and adversaries, against what is written out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from threat_specification import L2, AnchorSet, Linf, ProjectedDisplacement
from training.adversaries import PGD, NonisotropicAugmentation
from training.objectives import Mixup, Moment, Part, Parts, clean, standard

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = 0.1 + 0.8 * torch.rand(6, 1, 4, 4, generator=GENERATOR)
LABELS = torch.arange(6) % 3
ANCHORS = AnchorSet(torch.rand(12, 1, 4, 4, generator=GENERATOR), torch.arange(12) % 3)
NOW = Moment(7, 2)


@dataclass
class Whole:
    """A batch on one process; partners are the images before."""

    images: Tensor = IMAGES
    labels: Tensor = LABELS
    index: Tensor = torch.arange(6)
    share: float = 1.0

    @property
    def partner_images(self) -> Tensor:
        return IMAGES.roll(1, 0)[self.index]

    @property
    def partner_labels(self) -> Tensor:
        return LABELS.roll(1)[self.index]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def loss_of(model: nn.Module, images: Tensor, labels: Tensor = LABELS) -> Tensor:
    return torch.nn.functional.cross_entropy(model(images), labels).detach()


def brightened(amount: float):
    return lambda model, batch, moment: Part((batch.images + amount).clamp(0, 1), batch.labels)


def test_standard_is_the_cross_entropy() -> None:
    model = net().eval()
    loss, logits = standard(model, Whole(), NOW)
    assert float(loss.detach()) == pytest.approx(float(loss_of(model, IMAGES)))
    assert logits.shape == (6, 3)


def test_the_loss_is_the_average_of_the_parts() -> None:
    """main = 0.5 clean + 0.25 (a + b) beside two additions: each of the three counts a third."""
    model = net().eval()
    additions = [Part(IMAGES * 0.5, LABELS), Part(IMAGES * 0.25, LABELS)]
    objective = Parts(adversaries=[brightened(0.1), brightened(0.2)], additions=lambda batch, moment: additions)
    main = 0.5 * loss_of(model, IMAGES) + 0.25 * (
        loss_of(model, (IMAGES + 0.1).clamp(0, 1)) + loss_of(model, (IMAGES + 0.2).clamp(0, 1))
    )
    expected = (main + loss_of(model, IMAGES * 0.5) + loss_of(model, IMAGES * 0.25)) / 3
    assert float(objective(model, Whole(), NOW)[0].detach()) == pytest.approx(float(expected), rel=1e-5)


def test_clean_weight_0_is_madry_and_adversaries_start_when_told() -> None:
    model = net().eval()
    madry = Parts(adversaries=[brightened(0.1)], clean_weight=0.0)
    assert float(madry(model, Whole(), NOW)[0].detach()) == pytest.approx(
        float(loss_of(model, (IMAGES + 0.1).clamp(0, 1)))
    )
    later = Parts(adversaries=[brightened(0.1)], clean_weight=0.0, adversaries_from=3)
    assert float(later(model, Whole(), NOW)[0].detach()) == pytest.approx(float(loss_of(model, IMAGES)))


def test_mixup_blends_images_and_losses_alike() -> None:
    model = net().eval()
    part = Mixup(1.0, 3, seed=5)(Whole(), NOW)
    partner, partner_labels = IMAGES.roll(1, 0), LABELS.roll(1)
    share = float(((part.images - partner) / (IMAGES - partner)).flatten()[0])
    assert 0 < share < 1
    assert torch.allclose(part.images, share * IMAGES + (1 - share) * partner, atol=1e-6)
    blended = share * loss_of(model, part.images) + (1 - share) * loss_of(model, part.images, partner_labels)
    loss, _ = Parts(clean=Mixup(1.0, 3, seed=5))(model, Whole(), NOW)
    assert float(loss.detach()) == pytest.approx(float(blended), rel=1e-4)


@pytest.mark.parametrize(
    ("threat", "threshold", "radius", "size"),
    [
        (Linf(), 0.05, 0.05, 0.05),
        (L2(), 0.3, float("inf"), 0.3 / 4),
        (ProjectedDisplacement(anchors=ANCHORS), 0.1, 0.2, 0.2),
    ],
)
def test_adversaries_stay_in_their_set_raise_the_loss_and_leave_the_model_alone(
    threat, threshold, radius, size
) -> None:
    model = net()
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    part = PGD(threat, threshold, radius, size, 10, seed=1)(model, Whole(), NOW)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert float(threat.evaluate(IMAGES, LABELS, part.images).max()) <= threshold * (1 + 1e-5)
    assert float((part.images - IMAGES).abs().max()) <= min(radius, 1) * (1 + 1e-6)
    assert float(part.images.min()) >= 0 and float(part.images.max()) <= 1
    model.eval()
    assert float(loss_of(model, part.images)) > float(loss_of(model, IMAGES)) + 0.01


def test_augmentation_keeps_labels_and_the_threat_small_on_its_share_of_batches() -> None:
    threat = ProjectedDisplacement(anchors=ANCHORS)
    augment = NonisotropicAugmentation(threat, 0.1, 3, 0.0, 0.2, seed=2)
    made = [augment(Whole(), Moment(i, 0)) for i in range(300)]
    assert 70 <= sum(bool(parts) for parts in made) <= 130
    partner, noise = next(parts for parts in made if parts)
    for part in (partner, noise):
        assert part.targets.equal(LABELS)
        assert float(threat.evaluate(IMAGES, LABELS, part.images).max()) <= 0.1 * (1 + 1e-5)
        assert not torch.allclose(part.images, IMAGES)
    towards = (IMAGES.roll(1, 0) - IMAGES).flatten(1)
    assert bool((((partner.images - IMAGES).flatten(1) * towards).sum(1) > 0).all())


@pytest.mark.parametrize("kind", ["pgd", "augmentation"])
def test_what_an_image_gets_does_not_depend_on_its_batch(kind: str) -> None:
    threat = ProjectedDisplacement(anchors=ANCHORS)
    model = net().eval()
    rows = torch.tensor([1, 4, 5])
    some = Whole(IMAGES[rows], LABELS[rows], rows)
    if kind == "pgd":
        attack = PGD(threat, 0.1, 0.2, 0.2, 4, seed=1)
        whole, part = (attack(model, batch, NOW).images for batch in (Whole(), some))
    else:
        augment = NonisotropicAugmentation(threat, 0.1, 1, 0.0, 0.2, seed=2)
        whole, part = (augment(batch, NOW)[1].images for batch in (Whole(), some))
    assert torch.allclose(whole[rows], part, atol=1e-5)


def test_clean_is_the_batch() -> None:
    part = clean(Whole(), NOW)
    assert part.images.equal(IMAGES) and part.targets.equal(LABELS)
