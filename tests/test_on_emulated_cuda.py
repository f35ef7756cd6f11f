"""Threats, attacks, training and corruptions on an emulated CUDA device: the results of the CPU, on tensors of CUDA.

Most results are the CPU's to the bit, since the operations are. Those that hold projections onto PD or l2 balls are
compared to TOLERANCE: code for devices may reach the same point another way.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foundations.errors import UsageError
from foundations.step import Step
from testing.autoattack import autoattack
from testing.robust_accuracy import robust_accuracy
from tests.emulated.cuda import Counts, emulated_cuda, to_cuda
from tests.training.sources import ANCHORS, IMAGES, LABELS, net
from threat_specification import L2, AnchorSet, Intersection, Linf, ProjectedDisplacement, Threat
from threat_specification.attacks.base import Task
from threat_specification.attacks.registry import ATTACKS
from threat_specification.attacks.search import Cell, attack_set
from threat_specification.perturbations.draws import Draws
from threat_specification.perturbations.registry import SAFE
from threat_specification.projected_displacement.masks import mask_source_from
from threat_specification.ssim import SSIMDistance
from training.adversaries import PGD, Growth
from training.augmentation import (
    Chain,
    CutMix,
    Cutout,
    Mixup,
    Movements,
    NonisotropicAugmentation,
    OneOf,
    RandomCrop,
    RandomFlip,
)
from training.augmix import AugMix
from training.batch import Batch
from training.objectives import Averaged, Parts, Trades, standard
from training.starts import STARTS, LastPerturbations
from training.weight_perturbation import AdversarialWeights, as_they_are

TOLERANCE = 1e-5
DELTA = 0.3 * torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))
PERTURBED = (IMAGES + DELTA).clamp(0, 1)


@pytest.fixture
def counts() -> Iterator[Counts]:
    with emulated_cuda() as counted:
        yield counted


def flat(result: Any) -> list[Any]:
    """The tensors and other values of a result, in order."""
    if is_dataclass(result) and not isinstance(result, type):
        return flat([getattr(result, field.name) for field in fields(result)])
    if isinstance(result, dict):
        return flat(list(result.values()))
    return [each for part in result for each in flat(part)] if isinstance(result, (list, tuple)) else [result]


def agree(run: Callable[[str], Any], tolerance: float = 0.0) -> None:
    """The same results of `run` on both devices, up to a tolerance; on CUDA all its tensors are there."""
    expected = flat(run("cpu"))
    with emulated_cuda():
        found = flat(run("cuda"))
        assert all(value.is_cuda for value in found if isinstance(value, Tensor))
        found = [value.cpu() if isinstance(value, Tensor) else value for value in found]
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        if isinstance(mine, Tensor):
            assert mine.dtype == theirs.dtype
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
        else:
            assert mine == (pytest.approx(theirs, rel=tolerance) if isinstance(mine, float) else theirs)


# Threats.


def anchors(device: str) -> AnchorSet:
    return AnchorSet((255 * ANCHORS.images).round().to(torch.uint8).to(device), ANCHORS.labels.to(device))


def weighted(device: str) -> ProjectedDisplacement:
    weights = torch.tensor([[0.0, 0.4, 1.0], [0.4, 0.0, 0.7], [1.0, 0.7, 0.0]])
    return ProjectedDisplacement(weighted=True, class_weights=weights, anchors=anchors(device))


def halves(images: Tensor, index: Tensor | None = None) -> Tensor:
    return (images > 0.4).any(1, keepdim=True)


def segmented(device: str, background: str = "frozen", norm: str = "full") -> ProjectedDisplacement:
    return ProjectedDisplacement(
        segmented=True, mask_source=halves, background=background, segmented_norm=norm, anchors=anchors(device)
    )


def plain(device: str, projection: str = "exact") -> ProjectedDisplacement:
    return ProjectedDisplacement(anchors=anchors(device), projection=projection)


THREATS: dict[str, Callable[[str], Threat]] = {
    "Linf": lambda device: Linf(),
    "L2": lambda device: L2(),
    "PD": plain,
    "PD, scaled": partial(plain, projection="scale"),
    "PD-W": weighted,
    "PD-S": segmented,
    "PD-S, masked norm, background by the radius": partial(segmented, background="radius", norm="masked"),
    "Intersection": lambda device: Intersection([(plain(device), 0.1), (Linf(), 0.2)]),
}


@pytest.mark.parametrize("name", THREATS)
def test_threats(name: str) -> None:
    """Evaluate, project, and project again from the bound threat's memory, between bounds of pixels."""

    def run(device: str) -> list[Tensor | None]:
        threat = THREATS[name](device)
        threat.prepare()
        x, labels, delta, perturbed = (each.to(device) for each in (IMAGES, LABELS, DELTA, PERTURBED))
        bound = threat.bind(x, labels)
        lower, upper = (-x).clamp_min(-0.25), (1 - x).clamp_max(0.25)
        projected = [bound.project(delta * factor, 0.05, lower, upper) for factor in (1.0, 0.9, -1.0, 1e-3)]
        radius = bound.inscribed_radius()
        both = threat.project(x, labels, perturbed, 0.05, return_threats=True)
        return [*projected, threat.evaluate(x, labels, perturbed), *both, *([] if radius is None else [radius])]

    agree(run, 0.0 if name == "Linf" else TOLERANCE)


def test_explanations_and_measures() -> None:
    def run(device: str) -> Any:
        x, labels, perturbed = (each.to(device) for each in (IMAGES, LABELS, PERTURBED))
        threat = plain(device)
        radius = threat.inscribed_radius(x, labels)
        return [threat.explain(x, labels, perturbed), radius, SSIMDistance().evaluate(x, labels, perturbed)]

    agree(run, TOLERANCE)


def test_a_prepared_threat_follows_the_examples() -> None:
    """From anchors on the CPU to examples on CUDA, and back."""
    threat = plain("cpu").prepare()
    expected = threat.evaluate(IMAGES, LABELS, PERTURBED)
    with emulated_cuda():
        assert torch.equal(threat.evaluate(*map(to_cuda, (IMAGES, LABELS, PERTURBED))).cpu(), expected)
        assert torch.equal(threat.evaluate(IMAGES, LABELS, PERTURBED), expected)


@pytest.mark.parametrize("name", ["Linf", "L2", "PD", "Intersection"])
def test_arguments_on_another_device_are_one_clear_error(name: str, counts: Counts) -> None:
    threat, (x, labels, perturbed) = THREATS[name]("cuda"), map(to_cuda, (IMAGES, LABELS, PERTURBED))
    for which, arguments in {"labels": (x, LABELS, perturbed), "perturbed_examples": (x, labels, PERTURBED)}.items():
        for method in (threat.evaluate, threat.project):
            with pytest.raises(UsageError, match=rf"{which}: expected .* on cuda:0, .* got cpu; use {which}.to"):
                method(*arguments)
    with pytest.raises(UsageError, match=r"labels: expected .* on cuda:0"):
        threat.bind(x, LABELS)
    with pytest.raises(UsageError, match=r"delta: expected .* on cuda:0"):
        threat.bind(x, labels).evaluate(DELTA)


# Attacks.


class Rounded(nn.Module):
    """A model whose inputs are quantised, so that its gradients are useless."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model((16 * images).round() / 16)


def classifier(side: int, device: str) -> nn.Module:
    """A small network of four classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(side**2, 8), nn.ReLU(), nn.Linear(8, 4)).to(device).eval()


def task(device: str, images: Tensor, model: nn.Module, threat: Threat, cell: Cell) -> Task:
    """Examples with the answers of the model as their labels."""
    images = images.to(device)
    labels = model(images).argmax(1)
    index = torch.arange(len(labels), device=device)
    return Task(model, labels, attack_set(threat.bind(images, labels), cell), index >= 0, 3, index, 2)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name: str) -> None:
    """Every attack in a set of PD and a radius; the one for useless gradients on a model that has them."""

    def run(device: str) -> Any:
        attack, model = ATTACKS[name], classifier(4, device)
        if name == "estimated_gradient":
            attack, model = partial(attack, pairs=4), Rounded(model)
        return attack(task(device, IMAGES, model, plain(device), Cell(0.1, 0.15)))

    agree(run, TOLERANCE)


@pytest.mark.parametrize(
    ("name", "norm", "power"),
    [
        ("apgd-ce", "Linf", 0.1),
        ("apgd-t", "L2", 0.2),
        ("fab-t", "L2", 1.0),
        ("square", "Linf", 0.9),  # so large that its thousands of queries end early
    ],
)
def test_the_members_of_the_library(name: str, norm: str, power: float) -> None:
    pytest.importorskip("pyautoattack")
    images = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(4))

    def run(device: str) -> Any:
        here = task(device, images, classifier(6, device), Linf() if norm == "Linf" else L2(), Cell(1.0, 1.0))
        return autoattack(norm, power, [name], 4)[name](here)

    agree(run, TOLERANCE)


def test_robust_accuracy(counts: Counts) -> None:
    """Labels as a list or on the CPU; the model is on the device, and images that are not there are told so."""
    model = classifier(4, "cpu")
    labels = model(IMAGES).argmax(1)
    options: dict[str, Any] = {"radius": 0.9, "steps": 3, "attacks": ["apgd_ce"], "details": True}
    expected = robust_accuracy(model, IMAGES, labels.tolist(), plain("cpu"), 5.0, **options)
    there = model.to("cuda")
    found = robust_accuracy(there, to_cuda(IMAGES), labels, plain("cuda"), 5.0, **options)
    assert found.broken_by == expected.broken_by and found.accuracy == expected.accuracy
    assert found.warnings == expected.warnings and found.perturbed.is_cuda
    with pytest.raises(UsageError, match="images: expected them on cuda:0, where the model is, got cpu"):
        robust_accuracy(there, IMAGES, LABELS, plain("cuda"), 0.1)


# Training.


@dataclass
class Source:
    """A batch on a device; partners are the images before."""

    images: Tensor
    labels: Tensor
    index: Tensor
    share: float = 1.0

    @classmethod
    def on(cls, device: str) -> Source:
        return cls(IMAGES.to(device), LABELS.to(device), torch.arange(6, device=device))

    partners = property(lambda self: (self.index - 1) % 6)
    partner_images = property(lambda self: self.images[self.partners])
    partner_labels = property(lambda self: self.labels[self.partners])


def adversary(threat: Threat, **options: Any) -> PGD:
    return PGD("N_adv", threat, 0.1, 0.15, 0.15, 2, 5, **options)


OBJECTIVES: dict[str, Callable[[str], Parts]] = {
    "standard": lambda device: standard,
    "label smoothing": lambda device: Parts(label_smoothing=0.1),
    "mixup or CutMix": lambda device: Parts(clean=OneOf([Mixup(1.0, 3, 5), CutMix(1.0, 3, 6)], 7)),
    "N_aug": lambda device: Parts(additions=NonisotropicAugmentation(plain(device), 0.1, 1.0, 0.0, 0.3, 5)),
    "linf and PD": lambda device: Parts(adversaries=[adversary(Linf()), adversary(plain(device), momentum=0.5)]),
    "PD-S": lambda device: Parts(adversaries=[adversary(segmented(device))], combine=Averaged(0.0)),
    "PD-W, TRADES, mixed": lambda device: Parts(
        clean=Mixup(1.0, 3, 5), adversaries=[adversary(weighted(device), loss="trades")], combine=Trades()
    ),
    "growing, linear steps": lambda device: Parts(
        adversaries=[adversary(L2(), growth=Growth(0, 9), schedule="linear")]
    ),
}


def batch(device: str, draw: int = 1) -> Batch:
    moves = Movements([RandomCrop(1, 2), RandomFlip(3)])
    return Batch(Source.on(device), move=moves, change=Chain([AugMix(5), Cutout(2, 4)]), draw=draw)


def gradients(device: str, objective: Parts, perturbation: Any = as_they_are) -> list[Tensor]:
    """The loss of a batch and the gradients of the weights."""
    model = net().to(device)
    parts = objective.make(model, batch(device), Step(1, 4))
    with perturbation(model, objective, parts):
        scores = objective.score(model, parts)
        scores.loss.backward()
    return [scores.loss.detach(), *scores.correct.values(), *(weight.grad for weight in model.parameters())]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_objectives(name: str) -> None:
    agree(lambda device: gradients(device, OBJECTIVES[name](device)), TOLERANCE)


def test_adversarial_weights() -> None:
    agree(lambda device: gradients(device, OBJECTIVES["linf and PD"](device), AdversarialWeights(0.01)), TOLERANCE)


@pytest.mark.parametrize("name", STARTS)
def test_starts(name: str) -> None:
    def run(device: str) -> Any:
        (starts,) = STARTS[name](1, 6, tuple(IMAGES.shape[1:]), torch.device(device))
        model, attack = net().to(device), replace(adversary(plain(device)), starts=starts)
        found = []
        for draw in range(2):
            found.append(attack(model, batch(device, draw), Step(draw, 0)).images)
            if isinstance(starts, LastPerturbations):
                starts.commit()
        return found

    agree(run, TOLERANCE)


# Corruptions.


@pytest.mark.parametrize("channels", [1, 3])
def test_corruptions(channels: int) -> None:
    """Every safe change at its mildest."""
    images = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(2))

    def run(device: str) -> Any:
        index = torch.arange(2, device=device)
        return {
            name: change(images.to(device), Draws(0, index, name), change.severities[0])
            for name, change in SAFE.items()
        }

    agree(run)


def test_a_projection_waits_for_the_device_a_few_times_only() -> None:
    """The number of waits depends neither on the examples nor on the anchors that bind."""
    with emulated_cuda() as counts:
        x, labels, delta = (to_cuda(each) for each in (IMAGES, LABELS, DELTA))
        bound = plain("cuda").prepare().bind(x, labels)
        lower, upper = (-x).clamp_min(-0.25), (1 - x).clamp_max(0.25)
        bound.project(delta, 0.01, lower, upper)
        counts.reset()
        moved = bound.project(1.1 * delta, 0.01, lower, upper)
        assert counts.waited <= 6
        assert bool((moved != 1.1 * delta).flatten(1).any(1).all())


def test_known_masks_are_found_by_one_copy_of_the_images() -> None:
    """There was one for each image, in every step of a training in the segmented form."""
    with emulated_cuda() as counts:
        masks, x = mask_source_from("center"), to_cuda(IMAGES)
        expected = masks(x)
        counts.reset()
        assert masks(x).equal(expected)
        assert counts.waited <= 3


def test_augmix_waits_for_the_device_a_few_times_beside_torchvision() -> None:
    """The host groups images by their change; it sent the rows of each group by themselves."""
    changes_end = inspect.getsourcelines(AugMix)[1]  # the lines before call torchvision
    with emulated_cuda() as counts:
        x, index = to_cuda(torch.rand(64, 3, 16, 16)), to_cuda(torch.arange(64))
        counts.reset()
        AugMix(seed=1)(x, index, 0)
        ours = [re.match(r"training/augmix.py:(\d+) ", place) for place in counts.places.elements()]
    assert 0 < sum(found is not None and int(found[1]) >= changes_end for found in ours) < 10, counts.places
