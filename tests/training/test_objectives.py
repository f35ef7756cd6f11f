"""Objectives and adversaries, against what is written out by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foundations.step import Step
from tests.training.sources import ANCHORS, IMAGES, LABELS, Whole, net, some, state_of
from threat_specification import L2, Linf, ProjectedDisplacement
from training.adversaries import PGD, SCHEDULES, Growth
from training.augmentation import CutMix, Mixup, NonisotropicAugmentation, OneOf
from training.batch import Batch
from training.objectives import Averaged, Part, Parts, Scores, Trades, clean, standard

NOW = Step(7, 2)
BATCH = Batch(Whole())


def run(objective: Parts, model: nn.Module, step: Step = NOW) -> Scores:
    scores = objective.score(model, objective.make(model, BATCH, step))
    return Scores(scores.loss.detach(), scores.correct)


def loss_of(model: nn.Module, images: Tensor, labels: Tensor = LABELS) -> Tensor:
    return torch.nn.functional.cross_entropy(model(images), labels).detach()


def brightened(amount: float):
    return lambda model, batch, step: Part("adv", (batch.images + amount).clamp(0, 1), batch.labels)


def test_standard_is_the_cross_entropy() -> None:
    model = net().eval()
    scores = run(standard, model)
    assert float(scores.loss) == pytest.approx(float(loss_of(model, IMAGES)))
    assert float(scores.correct["clean"]) == pytest.approx(float((model(IMAGES).argmax(1) == LABELS).float().mean()))


def test_the_loss_is_the_average_of_the_parts() -> None:
    """main = 0.5 clean + 0.25 (a + b) beside two additions: each of the three counts a third."""
    model = net().eval()
    additions = [Part("N_aug", IMAGES * 0.5, LABELS), Part("N_aug", IMAGES * 0.25, LABELS)]
    objective = Parts(adversaries=[brightened(0.1), brightened(0.2)], additions=lambda batch, step: additions)
    main = 0.5 * loss_of(model, IMAGES) + 0.25 * (
        loss_of(model, (IMAGES + 0.1).clamp(0, 1)) + loss_of(model, (IMAGES + 0.2).clamp(0, 1))
    )
    expected = (main + loss_of(model, IMAGES * 0.5) + loss_of(model, IMAGES * 0.25)) / 3
    assert float(run(objective, model).loss) == pytest.approx(float(expected), rel=1e-5)


def test_clean_weight_0_is_madry_and_adversaries_start_when_told() -> None:
    model = net().eval()
    madry = Parts(adversaries=[brightened(0.1)], combine=Averaged(0.0))
    assert float(run(madry, model).loss) == pytest.approx(float(loss_of(model, (IMAGES + 0.1).clamp(0, 1))))
    later = Parts(adversaries=[brightened(0.1)], combine=Averaged(0.0), adversaries_from=3)
    assert float(run(later, model).loss) == pytest.approx(float(loss_of(model, IMAGES)))
    assert "adv" not in run(later, model).correct and "adv" in run(later, model, Step(7, 3)).correct


@pytest.mark.parametrize("mixed", [False, True])
def test_trades_is_the_published_sum(mixed: bool) -> None:
    """CE + beta KL(p || q), with sums over classes written out; mixed images are not what q is held against."""
    model = net().eval()
    how = Mixup(1.0, 3, seed=5) if mixed else clean
    perturbed = [brightened(0.1), brightened(0.2)]
    scores = run(Parts(clean=how, adversaries=perturbed, combine=Trades(6.0)), model)
    first = run(Parts(clean=how), model).loss
    p = model(IMAGES).double().softmax(1)
    qs = [model((IMAGES + amount).clamp(0, 1)).double().softmax(1) for amount in (0.1, 0.2)]
    divergences = [sum(p[i, k] * (p[i, k] / q[i, k]).log() for i in range(6) for k in range(3)) / 6 for q in qs]
    assert float(scores.loss) == pytest.approx(float(first + 6 * sum(divergences).detach() / 2), rel=1e-5)


def test_label_smoothing_spreads_a_share_of_the_label() -> None:
    model = net().eval()
    logs = model(IMAGES).log_softmax(1).detach()
    targets = 0.9 * functional.one_hot(LABELS, 3) + 0.1 / 3
    loss = run(Parts(label_smoothing=0.1), model).loss
    assert float(loss) == pytest.approx(float(-(targets * logs).sum(1).mean()), rel=1e-5)


def test_mixup_blends_images_and_losses_alike() -> None:
    model = net().eval()
    part = Mixup(1.0, 3, seed=5)(BATCH, NOW)
    partner, partner_labels = IMAGES.roll(1, 0), LABELS.roll(1)
    share = float(((part.images - partner) / (IMAGES - partner)).flatten()[0])
    assert 0 < share < 1
    assert torch.allclose(part.images, share * IMAGES + (1 - share) * partner, atol=1e-6)
    blended = share * loss_of(model, part.images) + (1 - share) * loss_of(model, part.images, partner_labels)
    loss = run(Parts(clean=Mixup(1.0, 3, seed=5)), model).loss
    assert float(loss) == pytest.approx(float(blended), rel=1e-4)


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels() -> None:
    pasted = []
    for step in range(40):
        part = CutMix(1.0, 3, seed=5)(BATCH, Step(step, 0))
        foreign = part.images == IMAGES.roll(1, 0)
        assert bool((foreign | (part.images == IMAGES)).all())
        rows, columns = foreign[0, 0].any(1), foreign[0, 0].any(0)
        assert bool((foreign == (rows.view(1, 1, 4, 1) & columns.view(1, 1, 1, 4))).all())
        kept = 1 - float(foreign[0, 0].float().mean())
        expected = kept * functional.one_hot(LABELS, 3) + (1 - kept) * functional.one_hot(LABELS.roll(1), 3)
        assert torch.allclose(part.targets, expected)
        pasted.append(1 - kept)
    assert min(pasted) < 0.2 and max(pasted) >= 0.25


def test_mixup_and_cutmix_take_turns() -> None:
    mixup, cutmix = Mixup(1.0, 3, seed=5), CutMix(1.0, 3, seed=6)
    both = OneOf([mixup, cutmix], seed=7)
    which = [both(BATCH, Step(i, 0)).images.equal(mixup(BATCH, Step(i, 0)).images) for i in range(40)]
    assert 10 <= sum(which) <= 30


@pytest.mark.parametrize("loss", ["ce", "trades"])
@pytest.mark.parametrize(
    ("threat", "threshold", "radius", "size"),
    [
        (Linf(), 0.05, 0.05, 0.05),
        (L2(), 0.3, float("inf"), 0.3 / 4),
        (ProjectedDisplacement(anchors=ANCHORS), 0.1, 0.2, 0.2),
    ],
)
def test_adversaries_stay_in_their_set_raise_the_loss_and_leave_the_model_alone(
    threat, threshold, radius, size, loss
) -> None:
    model = net()
    model.train()
    state = state_of(model)
    part = PGD("adv", threat, threshold, radius, size, 10, 1, loss)(model, BATCH, NOW)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert float(threat.evaluate(IMAGES, LABELS, part.images).max()) <= threshold * (1 + 1e-5)
    assert float((part.images - IMAGES).abs().max()) <= min(radius, 1) * (1 + 1e-6)
    assert float(part.images.min()) >= 0 and float(part.images.max()) <= 1
    model.eval()
    if loss == "ce":
        assert float(loss_of(model, part.images)) > float(loss_of(model, IMAGES)) + 0.01
    else:
        answers, moved = model(IMAGES).log_softmax(1).detach(), model(part.images).log_softmax(1).detach()
        start = PGD("adv", threat, threshold, radius, 0.0, 1, 1)(model, BATCH, NOW)
        before = model(start.images).log_softmax(1).detach()
        found, at_first = ((answers.exp() * (answers - logs)).sum() for logs in (moved, before))
        assert float(found) > 1.2 * float(at_first)


def test_steps_that_fall_cover_as_much_as_equal_ones() -> None:
    for steps in (1, 2, 5, 10):
        equal, falling = ([SCHEDULES[name](k, steps) for k in range(steps)] for name in ("constant", "linear"))
        assert sum(falling) == pytest.approx(sum(equal)) == pytest.approx(steps)
        assert falling[0] / falling[-1] == pytest.approx(steps)


@pytest.mark.parametrize(("schedule", "expected"), [("constant", [0.01] * 4), ("linear", [0.016, 0.012, 0.008, 0.004])])
def test_steps_are_as_long_as_asked_for(schedule: str, expected: list[float]) -> None:
    """Down the sum of all pixels, in a ball that holds the whole pixel box: most pixels move by the step."""
    points: list[Tensor] = []

    class Darkness(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            points.append(images.detach())
            total = images.flatten(1).sum(1, keepdim=True)
            return functional.one_hot(LABELS, 3) * total

    attack = PGD("adv", L2(), 1e3, float("inf"), 0.008, 4, 1, reach=5.0, schedule=schedule)
    points.append(attack(Darkness(), BATCH, NOW).images)
    ways = [float((before - after).median()) for before, after in pairwise(points)]
    assert ways == pytest.approx(expected, rel=1e-3)


def test_momentum_sums_up_unit_directions() -> None:
    """In a ball so large that nothing but the pixel box stops it, against the recursion in float64."""
    model, momentum = net().eval(), 0.75
    steps, size = 4, 0.08
    start = PGD("adv", L2(), 1e3, float("inf"), 0.0, 1, seed=1)(model, BATCH, NOW).images
    attack = PGD("adv", L2(), 1e3, float("inf"), size, steps, seed=1, reach=5.0, momentum=momentum)
    exact, point = net().double().eval(), start.double()
    direction = torch.zeros_like(point)
    for _ in range(steps):
        inputs = point.clone().requires_grad_(True)
        functional.cross_entropy(exact(inputs), LABELS, reduction="sum").backward()
        assert inputs.grad is not None
        length = inputs.grad.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        direction = momentum * direction + inputs.grad / length
        unit = direction / direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        point = (point + 5.0 / steps * size * unit * 16**0.5).clamp(0, 1)  # 16 pixels, by the pixel on average
    assert torch.allclose(attack(model, BATCH, NOW).images.double(), point, atol=1e-5)
    plain = replace(attack, momentum=0.0)(model, BATCH, NOW).images
    assert not torch.allclose(plain.double(), point, atol=1e-3)


@pytest.mark.parametrize(("epoch", "factor"), [(2, 0.25), (3, 0.5), (4, 0.75), (5, 1.0), (9, 1.0)])
def test_adversaries_grow_to_full_size_in_equal_parts(epoch: int, factor: float) -> None:
    """Far from black and white, they find what an adversary of that size finds, which was never told to grow."""
    model, threat = net().eval(), ProjectedDisplacement(anchors=ANCHORS)
    grey = Whole(0.35 + 0.3 * IMAGES)
    growing = PGD("N_adv", threat, 0.1, 0.2, 0.2, 3, seed=1, growth=Growth(first=2, epochs=3))
    then = Step(NOW.iteration, epoch)
    found = growing(model, Batch(grey), then).images
    small = PGD("N_adv", threat, factor * 0.1, factor * 0.2, factor * 0.2, 3, seed=1)
    assert torch.allclose(found, small(model, Batch(grey), then).images, atol=1e-5)
    assert float((found - grey.images).abs().max()) == pytest.approx(factor * 0.2, rel=1e-3)
    assert float(threat.evaluate(grey.images, LABELS, found).max()) <= factor * 0.1 * (1 + 1e-5)


def test_a_background_that_may_be_anything_grows_too() -> None:
    threat = ProjectedDisplacement(anchors=ANCHORS, segmented=True, mask_source="center", background="free")
    growing = PGD("N_adv", threat, 0.1, 0.2, 0.2, 3, seed=1, growth=Growth(epochs=19))
    whole, small = (growing(net().eval(), BATCH, Step(0, epoch)).images - IMAGES for epoch in (19, 0))
    assert float(whole.abs().max()) > 0.5  # outside the mask, where there is no radius
    assert 0.02 < float(small.abs().max()) <= 1 / 20


def test_one_step_is_as_long_as_asked_for() -> None:
    """1.25 times the size where nothing is said (Wong et al. 2020)."""
    attack = PGD("adv", Linf(), 1.0, 1.0, 0.01, 1, seed=1)
    assert [replace(attack, reach=reach).step_size for reach in (0.0, 0.5, 2.5)] == [0.0125, 0.005, 0.025]
    assert replace(attack, steps=5).step_size == pytest.approx(0.005)


def test_augmentation_keeps_labels_and_the_threat_small_on_its_share_of_batches() -> None:
    threat = ProjectedDisplacement(anchors=ANCHORS)
    augment = NonisotropicAugmentation(threat, 0.1, 3, 0.0, 0.2, seed=2)
    made = [augment(BATCH, Step(i, 0)) for i in range(300)]
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
    batches = BATCH, Batch(some(rows))
    if kind == "pgd":
        attack = PGD("N_adv", threat, 0.1, 0.2, 0.2, 4, seed=1)
        whole, part = (attack(model, batch, NOW).images for batch in batches)
    else:
        augment = NonisotropicAugmentation(threat, 0.1, 1, 0.0, 0.2, seed=2)
        whole, part = (augment(batch, NOW)[1].images for batch in batches)
    assert torch.allclose(whole[rows], part, atol=1e-5)


def test_one_step_from_a_random_start_is_fast_adversarial_training() -> None:
    """x + clip(u + 1.25 eps sign(gradient at x + u)), with the start that many steps would have."""
    model, eps = net().eval(), 0.05
    attack = PGD("adv", Linf(), eps, eps, eps, 1, seed=1)
    start = PGD("adv", Linf(), eps, eps, 0.0, 1, seed=1)(model, BATCH, NOW).images - IMAGES
    assert 0.5 * eps < float(start.abs().max()) <= eps
    inputs = (IMAGES + start).requires_grad_(True)
    functional.cross_entropy(model(inputs), LABELS).backward()
    assert inputs.grad is not None
    expected = IMAGES + (start + 1.25 * eps * inputs.grad.sign()).clamp(-eps, eps)
    assert torch.allclose(attack(model, BATCH, NOW).images, expected, atol=1e-6)


def test_a_broken_model_is_no_mistake_of_the_user() -> None:
    """NaN in the weights: the attack goes on, and the loss tells."""
    model = net().eval()
    with torch.no_grad():
        model[1].weight.fill_(float("nan"))
    attack = PGD("N_adv", ProjectedDisplacement(anchors=ANCHORS), 0.1, 0.2, 0.2, 2, seed=1)
    assert bool(run(Parts(adversaries=[attack]), model).loss.isnan())


@pytest.mark.parametrize("background", ["frozen", "radius"])
def test_masks_move_with_their_image(background: str) -> None:
    """Segmented, with the batch shifted by one row: outside the shifted mask the adversary may do nothing."""
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2] = True

    def down(images: Tensor, index: Tensor, draw: int) -> Tensor:
        return functional.pad(images, (0, 0, 1, 0))[:, :, :4]

    threat = ProjectedDisplacement(
        anchors=ANCHORS,
        segmented=True,
        mask_source=lambda images: mask.expand(len(images), 1, 4, 4),
        background=background,
    )
    batch = Batch(Whole(), move=down)
    part = PGD("N_adv", threat, 0.1, 0.2, 0.2, 3, seed=1)(net().eval(), batch, NOW)
    moved = (part.images - batch.images).abs().amax(0)[0] > 0
    assert moved[1:3].any(1).all()
    assert bool(moved[3].any()) == (background == "radius")


def test_clean_is_the_batch() -> None:
    part = clean(BATCH, NOW)
    assert part.images.equal(IMAGES) and part.targets.equal(LABELS)
