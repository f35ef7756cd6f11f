"""Training objective, augmentation and validation, built from the flags of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datasets.base import Examples
from datasets.info import DatasetInfo
from foundations.hparams import AugmentationHparams, TrainingHparams
from foundations.step import Step
from runners.train.desc import TrainDesc
from testing.shards import Shard, count_correct
from threat_specification import ProjectedDisplacement, Threat
from threat_specification.attacks.base import predicted
from threat_specification.registry import norm
from threat_specification.safe_moves.changes import changed, parse
from training.adversaries import PGD, Growth, Moves
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
from training.batch import Batch, Movement, Transform
from training.objectives import Averaged, Certify, Clean, Combine, Parts, Trades, clean, uncertified
from training.starts import STARTS, RandomStarts

ADVERSARIAL_LOSSES: dict[str, Callable[[TrainingHparams], Combine]] = {
    "ce": lambda training: Averaged(training.adv_clean_weight),
    "trades": lambda training: Trades(training.trades_beta),
}


def adversaries_from(
    training: TrainingHparams, train: Examples, info: DatasetInfo, threat: Threat | None, seed: int
) -> list[PGD]:
    """The adversaries that are on.

    threat   that of the nonisotropic adversary, up to an infinite threshold if it does not bound it
    """
    adversaries = []
    if training.adv_train:
        adversaries.append(_in_ball(training, math.prod(info.shape), seed))
    if training.N_adv_train:
        assert threat is not None
        radius, steps = training.N_adv_train_radius, training.N_adv_train_attack_iter
        threshold = math.inf if training.without_threat else training.N_adv_train_threshold
        loss = training.adv_loss
        made = PGD("N_adv", threat, threshold, radius, radius, steps, seed + 1, loss)
        adversaries.append(
            replace(
                made,
                reach=training.N_adv_train_step,
                schedule=training.N_adv_train_step_schedule,
                momentum=training.N_adv_train_momentum,
                moves=moves_of(training),
            )
        )
    starts = STARTS[training.adv_start](len(adversaries), len(train), info.shape, train.labels.device)
    growth = Growth(training.adv_train_start_epoch, training.adv_train_growth_epochs)
    return [replace(each, starts=start, growth=growth) for each, start in zip(adversaries, starts, strict=True)]


def moves_of(training: TrainingHparams) -> Moves | None:
    """The safe changes that the nonisotropic adversary mixes; None if it mixes none."""
    chosen = parse(training.N_train_safe_moves)
    return (lambda images, index, seed: changed(images, index, seed, chosen)) if chosen else None


def _in_ball(training: TrainingHparams, num_pixels: int, seed: int) -> PGD:
    """PGD in an isotropic ball and the pixel box."""
    threat, power = norm(training.adv_train_attack_norm), training.ball_power
    steps, size = training.adv_train_attack_iter, threat.usual_change(power, num_pixels)
    return PGD("adv", threat, power, threat.radius(power), size, steps, seed, training.adv_loss)


def objective_from(
    desc: TrainDesc,
    num_classes: int,
    adversaries: Sequence[PGD],
    threat: ProjectedDisplacement | None,
    seed: int,
    certify: Certify = uncertified,
) -> Parts:
    """One objective with everything that is switched on.

    threat    the plain form of PD, for the augmentation
    certify   adds the part of worst logits, with --certified_train
    """
    training, augmentation = desc.training, desc.augmentation
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
        clean=_clean(augmentation, num_classes, seed),
        adversaries=adversaries,
        combine=ADVERSARIAL_LOSSES[training.adv_loss](training),
        certify=certify,
        adversaries_from=training.adv_train_start_epoch,
        label_smoothing=training.label_smoothing,
        **options,
    )


def _clean(augmentation: AugmentationHparams, num_classes: int, seed: int) -> Clean:
    """The batch unchanged, or mixed by mixup or CutMix."""
    mixing: list[Clean] = []
    if augmentation.mixup:
        mixing.append(Mixup(augmentation.mixup_alpha, num_classes, seed + 3))
    if augmentation.cutmix:
        mixing.append(CutMix(augmentation.cutmix_alpha, num_classes, seed + 4))
    if not mixing:
        return clean
    return mixing[0] if len(mixing) == 1 else OneOf(mixing, seed + 5)


def moves_from(augmentation: AugmentationHparams, seed: int) -> Movement:
    """Crop and flip, if they are on."""
    movements: list[Movement] = []
    if augmentation.random_crop:
        movements.append(RandomCrop(augmentation.random_crop, seed))
    if augmentation.random_flip:
        movements.append(RandomFlip(seed + 1))
    return Movements(movements)


def changes_from(augmentation: AugmentationHparams, seed: int) -> Transform:
    """AugMix and cutout, if they are on."""
    made: list[Transform] = []
    if augmentation.augmix:
        from training.augmix import AugMix  # torchvision takes two seconds to import

        made.append(AugMix(seed + 6))
    if augmentation.cutout:
        made.append(Cutout(augmentation.cutout, seed + 2))
    return Chain(made)


@dataclass
class RobustValidation:
    """Correct predictions without attack, and those that are also correct under every adversary of training, if any.

    The adversaries have their full size.

    worst   (images, labels) -> worst logits at the full radius of certified training; None without it
    """

    model: nn.Module
    adversaries: Sequence[PGD]
    worst: Callable[[Tensor, Tensor], Tensor] | None = None
    columns: ClassVar[dict[str, str | tuple[str, int]]] = {"validation_correct": "bool", "robust_correct": "bool"}
    pictures = ()

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        right = count_correct(self.model, shard.images, shard.labels)
        robust = right.clone()
        for adversary in (replace(each, starts=RandomStarts(), growth=Growth()) for each in self.adversaries):
            batch: Any = shard  # has everything that an adversary needs from the source of a batch
            with torch.enable_grad():
                perturbed = adversary(self.model, Batch(batch), Step(0, 0)).images
            robust &= count_correct(self.model, perturbed, shard.labels)
        if self.worst is not None:
            with torch.no_grad():
                robust &= predicted(self.worst(shard.images, shard.labels)) == shard.labels
        return {"validation_correct": right, "robust_correct": robust}
