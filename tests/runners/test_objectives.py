"""From flags to the adversaries and augmentations of training: every flag arrives where it is meant to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from datasets.base import Split
from datasets.registry import dataset_info
from foundations.hparams import AugmentationHparams, TrainingHparams
from runners.train.objectives import adversaries_from, changes_from, moves_from
from tests.training.sources import ANCHORS, IMAGES, LABELS
from threat_specification import L2, Linf, ProjectedDisplacement
from training.adversaries import PGD
from training.augmentation import Cutout, RandomCrop, RandomFlip
from training.augmix import AugMix
from training.starts import LastPerturbations, RandomStarts

THREAT = ProjectedDisplacement(anchors=ANCHORS)
TRAIN = Split((IMAGES * 255).byte(), LABELS)


def adversaries(**flags: Any) -> list[PGD]:
    return adversaries_from(TrainingHparams(**flags), TRAIN, dataset_info("digits"), THREAT, seed=5)


def test_the_nonisotropic_adversary_is_as_its_flags_say() -> None:
    (made,) = adversaries(
        N_adv_train=True,
        N_adv_train_threshold=0.07,
        N_adv_train_radius=0.25,
        N_adv_train_attack_iter=4,
        N_adv_train_step=3.0,
        N_adv_train_step_schedule="linear",
        N_adv_train_momentum=0.6,
        adv_loss="trades",
        adv_start="last",
        adv_train_start_epoch=2,
        adv_train_growth_epochs=5,
    )
    assert made.threat is THREAT
    assert (made.name, made.threshold, made.radius, made.steps, made.loss) == ("N_adv", 0.07, 0.25, 4, "trades")
    assert (made.step_size, made.schedule, made.momentum) == (pytest.approx(3.0 / 4 * 0.25), "linear", 0.6)
    assert isinstance(made.starts, LastPerturbations) and made.starts.values.shape == (6, 1, 8, 8)
    assert [made.growth(epoch) for epoch in (2, 4, 7, 8)] == pytest.approx([1 / 6, 0.5, 1.0, 1.0])


@pytest.mark.parametrize(
    ("norm", "threat", "threshold", "radius", "size"),
    [("Linf", Linf, 0.15, 0.15, 0.15), ("L2", L2, 1.2, math.inf, 1.2 / 8)],
)
def test_the_isotropic_adversary_is_as_its_flags_say(
    norm: str, threat: type, threshold: float, radius: float, size: float
) -> None:
    (made,) = adversaries(
        adv_train=True,
        adv_train_attack_norm=norm,
        adv_train_attack_power_Linf=0.15,
        adv_train_attack_power_L2=1.2,
        adv_train_attack_iter=7,
        adv_train_growth_epochs=1,
    )
    assert isinstance(made.threat, threat)
    assert (made.name, made.threshold, made.radius, made.steps, made.momentum) == ("adv", threshold, radius, 7, 0.0)
    # 2.5 times the size in all, by the pixel (Madry et al. 2018).
    assert made.step_size == pytest.approx(2.5 / 7 * size)
    assert isinstance(made.starts, RandomStarts)
    assert [made.growth(epoch) for epoch in (0, 1)] == [0.5, 1.0]


def test_two_adversaries_have_their_own_numbers_and_starts() -> None:
    first, second = adversaries(adv_train=True, N_adv_train=True, adv_start="last")
    assert (first.name, second.name) == ("adv", "N_adv")
    assert first.seed != second.seed and first.starts is not second.starts
    assert not adversaries()


def test_what_flags_of_augmentation_do_to_an_image() -> None:
    """Each alone and together, in their order; none of them: nothing."""
    images, index = torch.rand(6, 3, 9, 9, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    mix, cut = AugMix(1 + 6), Cutout(3, 1 + 2)
    for flags, transforms in (
        ({}, []),
        ({"augmix": True}, [mix]),
        ({"cutout": 3}, [cut]),
        ({"augmix": True, "cutout": 3}, [mix, cut]),
    ):
        expected = images
        for transform in transforms:
            expected = transform(expected, index, 2)
        assert changes_from(AugmentationHparams(**flags), seed=1)(images, index, 2).equal(expected), flags
        assert not transforms or not expected.equal(images)
    crop, flip = RandomCrop(2, 1), RandomFlip(1 + 1)
    both = moves_from(AugmentationHparams(random_crop=2, random_flip=True), seed=1)
    assert both(images, index, 2).equal(flip(crop(images, index, 2), index, 2))
    assert moves_from(AugmentationHparams(), seed=1)(images, index, 2).equal(images)
