"""Hyperparameters of training: augmentation, optimizer, adversaries. Does not import torch.

`foundations/hparam_fields.py` defines how a field is declared. Those of data, model, anchors and precision stand in
`foundations/input_hparams.py`, those of evaluation in `foundations/testing_hparams.py`, and those of a single runner in
the folder of that runner (`runners/<runner>/desc.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foundations.errors import UsageError
from foundations.hparam_fields import Hparams, in_range, one_of, path_after_kind, setting, steps, steps_list
from foundations.input_hparams import ThreatHparams as ThreatHparams  # its name from outside

ADVERSARY = "adv_train|N_adv_train"


@dataclass(frozen=True)
class AugmentationHparams(Hparams):
    """Data augmentation: changes to the images of a batch, and images added to the batch."""

    heading: ClassVar[str] = "Augmentation"

    random_crop: int = setting(
        0,
        "Shift images by up to this many pixels, with 0 where nothing is left; the default depends on the data set.",
        check=in_range(0),
    )
    random_flip: bool = setting(False, "Mirror half of the images; the default depends on the data set.")
    cutout: int = setting(
        0, "Blacken a square of this side at a random place (DeVries and Taylor 2017).", check=in_range(0)
    )
    augmix: bool = setting(
        False,
        "Mix each image with chains of random changes of itself (AugMix, Hendrycks et al. 2020; changes and strengths "
        "are torchvision's).",
        hashed_if_set=True,
    )
    N_aug: bool = setting(False, "Nonisotropic augmentation: other images and noise, projected into the PD set.")
    N_aug_threshold: float = setting(
        0.1, "PD threshold of the nonisotropic augmentation.", check=in_range(0), when="N_aug"
    )
    N_aug_projection: str = setting(
        "scale",
        "How it is projected: scale (towards the image until the threat fits) or exact (nearest point, which on colour "
        "images leaves another class visible: docs/augmentation.png).",
        check=one_of("scale", "exact"),
        when="N_aug",
    )
    augmentation_frequency: int = setting(
        3, "One in this many batches, at random, is augmented nonisotropically.", check=in_range(1), when="N_aug"
    )
    gaussian_aug_mean: float = setting(
        0.0, "Mean of the Gaussian noise of the nonisotropic augmentation; pixels are in [0, 1].", when="N_aug"
    )
    gaussian_aug_std: float = setting(
        0.2,
        "Standard deviation of that noise; pixels are in [0, 1]; the default depends on the data set.",
        check=in_range(0),
        when="N_aug",
    )
    mixup: bool = setting(False, "Replace the clean part of the loss by mixup.")
    mixup_alpha: float = setting(
        1.0, "Mixup coefficients follow Beta(alpha, alpha).", check=in_range(0, above=True), when="mixup"
    )
    cutmix: bool = setting(
        False, "Replace the clean part of the loss by CutMix; with --mixup, one of the two by turns."
    )
    cutmix_alpha: float = setting(
        1.0, "Areas of CutMix follow Beta(alpha, alpha).", check=in_range(0, above=True), when="cutmix"
    )


@dataclass(frozen=True)
class TrainingHparams(Hparams):
    """Training: optimizer, schedule, adversaries and checkpoints."""

    heading: ClassVar[str] = "Training"

    training_steps: str = setting(
        "10ep", "Length of training: epochs (40ep) or optimizer steps (5000it).", check=steps, shows="LENGTH"
    )
    batch_size: int = setting(128, "Global batch size, over all processes.", check=in_range(1))
    accumulation: int = setting(
        1,
        "Parts that each process works through a batch in, to save memory; steps count whole batches.",
        check=in_range(1),
    )
    optimizer: str = setting("sgd", "sgd, adamw or another of training/optimizers.py.")
    lr: float = setting(0.1, "Peak learning rate.", check=in_range(0, above=True))
    lr_per: int = setting(
        0,
        "Batch size that --lr is meant for: the rate is --lr * --batch_size / this (0: --lr as it is).",
        check=in_range(0),
    )
    lr_schedule: str = setting(
        "cosine",
        "Schedule of the learning rate after warm-up: cosine (to 0), milestones, onecycle (Smith 2018) or constant.",
        check=one_of("cosine", "milestones", "onecycle", "constant"),
    )
    milestone_steps: str = setting(
        "",
        "Where the learning rate drops, such as 80ep,120ep (none: it stays).",
        check=steps_list,
        when="lr_schedule=milestones",
        shows="LENGTH,LENGTH",
    )
    gamma: float = setting(
        0.1,
        "Factor of the learning rate at each drop.",
        check=in_range(0, 1, above=True),
        when="lr_schedule=milestones",
    )
    warmup_steps: str = setting(
        "0it",
        "Length of the linear warm-up of the learning rate from 0, such as 5ep or 500it.",
        check=steps,
        shows="LENGTH",
    )
    momentum: float = setting(0.9, "Momentum of SGD.", check=in_range(0, 1), when="optimizer=sgd")
    nesterov: bool = setting(False, "Nesterov momentum.", when="optimizer=sgd")
    weight_decay: float = setting(
        0.0, "L2 penalty on the weights (adamw: decoupled from the gradient).", check=in_range(0)
    )
    clip_grad: float = setting(
        0.0, "Largest l2 norm of the gradient; longer ones are shortened (0: never).", check=in_range(0)
    )
    label_smoothing: float = setting(
        0.0, "Share of the label that is spread over all classes, in [0, 1).", check=in_range(0, 1)
    )
    ema_decay: float = setting(
        0.0,
        "Decay of a moving average of the weights, such as 0.999; after n steps it is at most (1 + n) / (10 + n). The "
        "average is then what is evaluated and kept (0: none).",
        check=in_range(0, 1),
    )
    precision: str = setting(
        "fp32",
        "Precision of forward and backward passes: fp32, bf16 or fp16 (GPUs, with loss scaling).",
        check=one_of("fp32", "bf16", "fp16"),
    )
    validation_fraction: float = setting(
        0.0, "Share of the training images, by class, that is held out to watch and select by.", check=in_range(0, 0.9)
    )
    select: str = setting(
        "last",
        "Weights to keep: last, or best (robust accuracy on the held-out images; clean where no adversary is on).",
        check=one_of("last", "best"),
    )
    adv_train: bool = setting(False, "Adversarial training with PGD in an isotropic ball.")
    adv_train_attack_norm: str = setting(
        "Linf", "Norm of that ball: Linf, L2 or another of threat_specification/registry.py.", when="adv_train"
    )
    adv_train_attack_power: float = setting(
        0.0,
        "Radius of that ball, whatever its norm (0: that of --adv_train_attack_power_<norm>).",
        check=in_range(0),
        hashed_if_set=True,
        when="adv_train",
    )
    adv_train_attack_power_Linf: float = setting(
        8 / 255,
        "Radius of the l-inf ball; pixels are in [0, 1]; the default depends on the data set.",
        check=in_range(0),
        when="adv_train_attack_norm=Linf",
    )
    adv_train_attack_power_L2: float = setting(
        0.5,
        "Radius of the l2 ball (norm of the whole change; pixels are in [0, 1]); the default depends on the data set.",
        check=in_range(0),
        when="adv_train_attack_norm=L2",
    )
    adv_train_attack_iter: int = setting(
        10, "Steps of that attack; 1 is fast adversarial training.", check=in_range(1), when="adv_train"
    )
    adv_train_start_epoch: int = setting(
        0, "First adversarial epoch, counted from 0.", check=in_range(0), when=ADVERSARY
    )
    adv_train_growth_epochs: int = setting(
        0,
        "Epochs in which adversaries are smaller: power, or threshold and radius, grow to full size in equal parts.",
        check=in_range(0),
        when=ADVERSARY,
    )
    adv_loss: str = setting(
        "ce",
        "What adversaries maximise and training minimises: ce (Madry et al. 2018) or trades (Zhang et al. 2019).",
        check=one_of("ce", "trades"),
        when=ADVERSARY,
    )
    adv_clean_weight: float = setting(
        0.5,
        "Weight of the clean part when an adversary is on; 0 is Madry's recipe.",
        check=in_range(0, 1),
        when="adv_loss=ce",
    )
    trades_beta: float = setting(6.0, "Weight of the divergence in TRADES.", check=in_range(0), when="adv_loss=trades")
    adv_start: str = setting(
        "random",
        "Where adversaries start: random (near the image), corner (at the far ends of the set, slower) or last (where "
        "they ended on the image an epoch before; few steps add up).",
        check=one_of("random", "corner", "last"),
        when=ADVERSARY,
    )
    awp: bool = setting(
        False,
        "Adversarial weight perturbation (Wu et al. 2020), of each part of a batch; needs an adversary.",
        when=ADVERSARY,
    )
    awp_gamma: float = setting(
        0.005, "Size of that perturbation, relative to each layer's weights.", check=in_range(0), when="awp"
    )
    N_adv_train: bool = setting(False, "Adversarial training inside the nonisotropic (PD) set.")
    N_adv_train_threshold: float = setting(
        0.1, "PD threshold of the nonisotropic adversary.", check=in_range(0), when="N_adv_train"
    )
    N_train_coverage: float = setting(
        0.0,
        "Take that threshold, and the radius of --adv_train's ball, from evaluate_threat, as --N_coverage of test.",
        check=in_range(0, 1),
        when=ADVERSARY,
        hashed_if_set=True,
    )
    N_adv_train_radius: float = setting(
        8 / 255,
        "l-inf radius of the nonisotropic adversary; pixels are in [0, 1]; the default depends on the data set.",
        check=in_range(0),
        when="N_adv_train",
    )
    N_adv_train_attack_iter: int = setting(
        10,
        "Steps of the nonisotropic adversary; with --N_train_safe_moves also 0: a random mixture and random noise.",
        check=in_range(0),
        when="N_adv_train",
    )
    N_adv_train_step: float = setting(
        0.0,
        "Length of each of those steps, in units of radius / number of steps (0: 2.5, or 1.25 for a single step).",
        check=in_range(0),
        when="N_adv_train",
    )
    N_adv_train_step_schedule: str = setting(
        "constant",
        "How that length changes over the steps: constant, or linear (falling, with the same mean).",
        check=one_of("constant", "linear"),
        when="N_adv_train",
    )
    N_adv_train_momentum: float = setting(
        0.75,
        "Momentum of its steps, in [0, 1]; without it, steps oscillate.",
        check=in_range(0, 1),
        when="N_adv_train",
    )
    N_adv_train_projection: str = setting(
        "exact",
        "Projection in every step of the nonisotropic adversary: exact (nearest point) or scale (quick, weaker).",
        check=one_of("exact", "scale"),
        when="N_adv_train",
    )
    N_train_weighted: bool = setting(
        False,
        "That adversary uses the weighted form of PD; needs the --class_weights that compute_threat was given.",
        when="N_adv_train",
    )
    N_train_tangents: str = setting(
        "",
        "That adversary uses the tangent form of PD, as --tangents of test.",
        when="N_adv_train",
        hashed_if_set=True,
        bare="all",
        shows="NAME,NAME",
    )
    N_train_tangent_weight: float = setting(
        0.1,
        "Lambda of that form, as --tangent_weight of test.",
        check=in_range(0.01),
        when="N_train_tangents",
        hashed_if_set=True,
    )
    N_train_segmented: bool = setting(False, "That adversary uses the segmented form of PD.", when="N_adv_train")
    N_train_mask_source: str = setting(
        "center",
        "Where its masks come from: center (an ellipse), grabcut, sam:CHECKPOINT or file:MASKS.safetensors.",
        path_in=path_after_kind,
        when="N_train_segmented",
    )
    N_train_segmented_norm: str = setting(
        "full",
        "Norm in its segmented form: full or masked, as --segmented_norm of test.",
        check=one_of("full", "masked"),
        when="N_train_segmented",
    )
    N_train_background: str = setting(
        "frozen",
        "What it may do outside the mask: nothing (frozen), as inside (radius) or anything (free).",
        check=one_of("frozen", "radius", "free"),
        when="N_train_segmented",
    )
    N_train_safe_moves: str = setting(
        "",
        "That adversary mixes safe changes, beside noise up to its radius: as --safe_moves of test.",
        when="N_adv_train",
        hashed_if_set=True,
        bare="quick:3",
        shows="NAME,NAME",
    )
    N_train_safe_moves_count: int = setting(
        0,
        "Only this many of those changes, the same number of each suite (0: all).",
        check=in_range(0),
        when="N_train_safe_moves",
        hashed_if_set=True,
    )
    N_train_without_threat: bool = setting(
        False,
        "The threat does not bound those mixtures and that noise, and no anchors are needed (as AugMax, Wang et al. "
        "2021).",
        when="N_train_safe_moves",
        hashed_if_set=True,
    )
    certified_train: bool = setting(
        False,
        "Certified training: the loss of the worst logits within a radius, bounded by interval arithmetic (IBP, Gowal "
        "et al. 2018).",
        hashed_if_set=True,
    )
    certified_train_radius: float = setting(
        8 / 255,
        "That l-inf radius; pixels are in [0, 1] and stay there; the default depends on the data set.",
        check=in_range(0),
        when="certified_train",
    )
    certified_train_clean_weight: float = setting(
        0.5,
        "Weight of all other parts of the loss at the end, the clean one and adversaries (kappa).",
        check=in_range(0, 1),
        when="certified_train",
    )
    certified_train_ramp: float = setting(
        0.5,
        "Share of the steps over which the radius grows from 0, and that weight falls from 1.",
        check=in_range(0, 1),
        when="certified_train",
    )
    certified_train_scaling: bool = setting(
        False,
        "Scale random weights before the first step, so that intervals keep their width through the layers (Shi et al. "
        "2021): for networks that stay at chance without it.",
        when="certified_train",
        hashed_if_set=True,
    )
    channels_last: bool = setting(False, "Images in the memory layout that suits convolutions.", hashed=False)
    compile: bool = setting(False, "Compile the network first (torch.compile); pays off in long runs.", hashed=False)
    checkpoint_minutes: float = setting(
        10.0,
        "Minutes between checkpoints within an epoch; every epoch ends with one anyway (0: only those).",
        check=in_range(0),
        hashed=False,
    )
    keep_checkpoints: int = setting(2, "Newest checkpoints that are kept.", check=in_range(1), hashed=False)
    tensorboard: bool = setting(False, "Write events for TensorBoard too, in tensorboard/.", hashed=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise UsageError("--nesterov: expected --momentum above 0, got 0")
        if self.select == "best" and self.validation_fraction == 0:
            raise UsageError("--select=best: expected --validation_fraction above 0 to select by, got 0")
        for name in ("label_smoothing", "ema_decay"):
            if getattr(self, name) == 1:
                raise UsageError(f"--{name}: expected a number below 1, got 1")

    @property
    def ball_power(self) -> float:
        """Radius of the isotropic ball, for pixel values in [0, 1]."""
        return power_of(self, "adv_train_attack", self.adv_train_attack_norm)

    @property
    def has_adversary(self) -> bool:
        return self.adv_train or self.N_adv_train

    @property
    def without_threat(self) -> bool:
        """True if the nonisotropic adversary mixes safe changes that no threat bounds."""
        return bool(self.N_adv_train and self.N_train_safe_moves and self.N_train_without_threat)

    @property
    def peak_lr(self) -> float:
        """The peak learning rate for this batch size."""
        return self.lr * self.batch_size / self.lr_per if self.lr_per else self.lr


def power_of(hparams: Hparams, attack: str, norm: str) -> float:
    """The value of --<attack>_power, or of --<attack>_power_<norm> if the first is 0."""
    power = getattr(hparams, f"{attack}_power") or getattr(hparams, f"{attack}_power_{norm}", None)
    if power is None:
        raise UsageError(f"--{attack}_power: expected the radius of the {norm} ball, got none")
    return power
