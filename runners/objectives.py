"""From the flags of training to its objective."""

from __future__ import annotations

import math
from typing import Any

from datasets.registry import dataset_info
from foundations.hparams import TrainingHparams
from runners.descriptions import TrainDesc
from threat_specification import L2, Linf, ProjectedDisplacement
from training.adversaries import PGD, NonisotropicAugmentation
from training.objectives import Mixup, Objective, Parts, clean


def objective_from(desc: TrainDesc, num_classes: int, threat: ProjectedDisplacement | None, seed: int) -> Objective:
    """All that is switched on, in one objective; threat: for the parts that need one."""
    training, augmentation = desc.training, desc.augmentation
    adversaries = []
    if training.adv_train:
        adversaries.append(_in_ball(training, math.prod(dataset_info(desc.dataset).shape), seed))
    if training.N_adv_train:
        assert threat is not None
        radius, steps = training.N_adv_train_radius, training.N_adv_train_attack_iter
        adversaries.append(PGD(threat, training.N_adv_train_threshold, radius, radius, steps, seed + 1))
    options: dict[str, Any] = {}
    if augmentation.N_aug:
        assert threat is not None
        options["additions"] = NonisotropicAugmentation(
            threat,
            augmentation.N_aug_threshold,
            augmentation.augmentation_frequency,
            augmentation.gaussian_aug_mean,
            augmentation.gaussian_aug_std,
            seed + 2,
        )
    return Parts(
        clean=Mixup(augmentation.mixup_alpha, num_classes, seed + 3) if augmentation.mixup else clean,
        adversaries=adversaries,
        clean_weight=training.adv_clean_weight,
        adversaries_from=training.adv_train_start_epoch,
        **options,
    )


def _in_ball(training: TrainingHparams, num_pixels: int, seed: int) -> PGD:
    """PGD in an isotropic ball and the pixel box."""
    if training.adv_train_attack_norm == "Linf":
        power = training.adv_train_attack_power_Linf
        return PGD(Linf(), power, power, power, training.adv_train_attack_iter, seed)
    power = training.adv_train_attack_power_L2
    return PGD(L2(), power, math.inf, power / math.sqrt(num_pixels), training.adv_train_attack_iter, seed)
