"""All hyperparameters, in groups. Torch-free; `foundations/settings.py` says how a field is declared.

Those of data sets and models are in `data_hparams.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from foundations.data_hparams import DatasetHparams, ModelHparams
from foundations.errors import UsageError
from foundations.settings import (
    Hparams,
    chunks,
    in_range,
    one_of,
    path_after_kind,
    setting,
    steps,
    steps_list,
    whole_path,
)

__all__ = [
    "AugmentationHparams",
    "DatasetHparams",
    "ModelHparams",
    "TestingHparams",
    "ThreatHparams",
    "TrainingHparams",
]


@dataclass(frozen=True)
class ThreatHparams(Hparams):
    """How the anchors of the Projected Displacement threat are chosen and held."""

    per_label: int = setting(50, "Anchors chosen for each class.", check=in_range(1))
    selection: str = setting(
        "greedy_subsets",
        "How anchors are chosen: greedy_subsets, random or kmeans.",
        check=one_of("greedy_subsets", "random", "kmeans"),
    )
    domain_expansion_factor: int = setting(
        10,
        "Candidates per anchor: each half-set is chosen among this many times per_label / 2 images.",
        check=in_range(1),
        when="selection=greedy_subsets|selection=kmeans",
    )
    num_chunks: bool | int = setting(
        True,
        "Anchors are processed in this many chunks (True: chosen by size); changes memory, not results.",
        check=chunks,
        hashed=False,
    )
    shard_anchors: bool = setting(
        False,
        "Spread the anchors over the processes, for sets that no device can hold; all then work on the same examples.",
        hashed=False,
    )
    halves: bool = setting(
        False,
        "compute_threat also compares its two half-sets of anchors, to judge how stable the threat is.",
        hashed=False,
    )
    class_weights: str = setting(
        "",
        "Weights of the weighted form, calibrated and kept with the anchors: a K x K matrix (.safetensors, .npy, "
        ".csv), tree:FILE with lines `class: path/of/groups`, or wordnet:DATA_NOUN for ImageNet.",
        path_in=whole_path,
    )
    strict: bool = setting(False, "compute_threat refuses training images that occur with two labels.", hashed=False)


@dataclass(frozen=True)
class AugmentationHparams(Hparams):
    """What is added to the clean batches of training."""

    N_aug: bool = setting(False, "Nonisotropic augmentation: other images and noise, projected into the PD set.")
    N_aug_threshold: float = setting(
        0.1, "PD threshold of the nonisotropic augmentation.", check=in_range(0), when="N_aug"
    )
    augmentation_frequency: int = setting(
        3, "One in this many batches, at random, is augmented nonisotropically.", check=in_range(1), when="N_aug"
    )
    gaussian_aug_mean: float = setting(
        0.0, "Mean of the Gaussian noise of the nonisotropic augmentation, in pixels of [0, 1].", when="N_aug"
    )
    gaussian_aug_std: float = setting(
        0.2,
        "Standard deviation of that noise, in pixels of [0, 1]; the default depends on the data set.",
        check=in_range(0),
        when="N_aug",
    )
    mixup: bool = setting(False, "Replace the clean part of the loss by mixup.")
    mixup_alpha: float = setting(
        1.0, "Mixup coefficients follow Beta(alpha, alpha).", check=in_range(0, above=True), when="mixup"
    )


@dataclass(frozen=True)
class TrainingHparams(Hparams):
    """How the model is trained."""

    training_steps: str = setting("10ep", "Length of training: epochs (40ep) or optimizer steps (5000it).", check=steps)
    batch_size: int = setting(128, "Global batch size, over all processes.", check=in_range(1))
    lr: float = setting(0.1, "Peak learning rate.", check=in_range(0, above=True))
    lr_schedule: str = setting(
        "cosine",
        "Course of the learning rate after warm-up: cosine (to 0), milestones or constant.",
        check=one_of("cosine", "milestones", "constant"),
    )
    milestone_steps: str = setting(
        "", "Where the learning rate drops: 80ep,120ep.", check=steps_list, when="lr_schedule=milestones"
    )
    gamma: float = setting(0.1, "Factor of each drop.", check=in_range(0, 1, above=True), when="lr_schedule=milestones")
    warmup_steps: str = setting("0it", "Linear warm-up from 0.", check=steps)
    momentum: float = setting(0.9, "Momentum of SGD.", check=in_range(0, 1))
    nesterov: bool = setting(False, "Nesterov momentum.")
    weight_decay: float = setting(0.0, "L2 penalty on the weights.", check=in_range(0))
    adv_train: bool = setting(False, "Adversarial training with PGD in an isotropic ball.")
    adv_train_attack_norm: str = setting(
        "Linf", "Norm of that ball: Linf or L2.", check=one_of("Linf", "L2"), when="adv_train"
    )
    adv_train_attack_power_Linf: float = setting(
        8 / 255,
        "Radius of the l-inf ball in pixels of [0, 1]; the default depends on the data set.",
        check=in_range(0),
        when="adv_train_attack_norm=Linf",
    )
    adv_train_attack_power_L2: float = setting(
        0.5,
        "Radius of the l2 ball; the default depends on the data set.",
        check=in_range(0),
        when="adv_train_attack_norm=L2",
    )
    adv_train_attack_iter: int = setting(10, "Steps of that attack.", check=in_range(1), when="adv_train")
    adv_train_start_epoch: int = setting(
        0, "First adversarial epoch, counted from 0.", check=in_range(0), when="adv_train|N_adv_train"
    )
    adv_clean_weight: float = setting(
        0.5,
        "Weight of the clean part when an adversary is on; 0 is Madry's recipe.",
        check=in_range(0, 1),
        when="adv_train|N_adv_train",
    )
    N_adv_train: bool = setting(False, "Adversarial training inside the nonisotropic (PD) set.")
    N_adv_train_threshold: float = setting(
        0.1, "PD threshold of the nonisotropic adversary.", check=in_range(0), when="N_adv_train"
    )
    N_adv_train_radius: float = setting(
        32 / 255,
        "l-inf radius of the nonisotropic adversary; the default depends on the data set.",
        check=in_range(0),
        when="N_adv_train",
    )
    N_adv_train_attack_iter: int = setting(
        10, "Steps of the nonisotropic adversary.", check=in_range(1), when="N_adv_train"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise UsageError("--nesterov: expected --momentum above 0, got 0")


@dataclass(frozen=True)
class TestingHparams(Hparams):
    """Which evaluations, how strong, and on what."""

    __test__ = False  # not a test case, whatever pytest reads into the name

    standard_eval: bool = setting(False, "Accuracy on clean images.")
    adv_eval: bool = setting(False, "Accuracy under AutoAttack in an isotropic ball.")
    N_adv_eval: bool = setting(False, "Accuracy under attack inside the nonisotropic set {PD <= threshold}.")
    num_examples: int = setting(
        0, "Evaluate a seeded, class-stratified subset of this many test images (0: all).", check=in_range(0)
    )
    shard_size: int = setting(
        250, "Images evaluated together; fixed, whatever the number of processes.", check=in_range(1)
    )
    adv_test_attack_type: str = setting(
        "auto",
        "auto (AutoAttack: apgd-ce, apgd-t, fab-t, square), apgd (its apgd-ce alone) or pgd (Madry et al. 2018).",
        check=one_of("auto", "apgd", "pgd"),
        when="adv_eval",
    )
    adv_test_attack_norm: str = setting(
        "Linf", "Norm of the ball: Linf or L2.", check=one_of("Linf", "L2"), when="adv_eval"
    )
    adv_test_attack_power_Linf: float = setting(
        8 / 255,
        "Radius of the l-inf ball in pixels of [0, 1]; the default depends on the data set.",
        check=in_range(0),
        when="adv_test_attack_norm=Linf",
    )
    adv_test_attack_power_L2: float = setting(
        0.5,
        "Radius of the l2 ball; the default depends on the data set.",
        check=in_range(0),
        when="adv_test_attack_norm=L2",
    )
    N_threshold: float = setting(0.1, "PD threshold of the nonisotropic set.", check=in_range(0), when="N_adv_eval")
    N_radius: float = setting(
        32 / 255,
        "Its second bound, an l-inf radius in pixels; the default depends on the data set.",
        check=in_range(0),
        when="N_adv_eval",
    )
    N_thresholds: tuple[float, ...] = setting(
        (), "A grid: these PD thresholds too, each with every radius.", check=in_range(0), when="N_adv_eval"
    )
    N_radii: tuple[float, ...] = setting(
        (), "A grid: these radii too, each with every threshold.", check=in_range(0), when="N_adv_eval"
    )
    attacks: str = setting(
        "",
        "Members of the nonisotropic ensemble by name, in order, comma-separated (default: all that fit).",
        when="N_adv_eval",
    )
    eot: int = setting(
        1,
        "For models that answer at random: gradients and decisions from the mean over this many passes.",
        check=in_range(1),
        when="N_adv_eval",
    )
    projection: str = setting(
        "exact",
        "Projection in every step of those attacks: exact (nearest point) or scale (quick; robustness looks too high).",
        check=one_of("exact", "scale"),
        when="N_adv_eval",
    )
    weighted: bool = setting(
        False,
        "Use the weighted form of PD; needs the --class_weights that compute_threat was given.",
        when="N_adv_eval",
    )
    segmented: bool = setting(False, "Use the segmented form of PD: only the object counts.", when="N_adv_eval")
    mask_source: str = setting(
        "center",
        "Where masks of objects come from: center (an ellipse), grabcut, sam:CHECKPOINT or file:MASKS.safetensors.",
        path_in=path_after_kind,
        when="segmented",
    )
    background: str = setting(
        "frozen",
        "What attacks may do outside the mask: nothing (frozen), as inside (radius) or anything (free).",
        check=one_of("frozen", "radius", "free"),
        when="segmented",
    )
    N_attack_iter: int = setting(40, "Steps of each nonisotropic attack.", check=in_range(1), when="N_adv_eval")
    evaluate_only_batch_test: bool = setting(False, "Evaluate the first shard alone: a quick look.")
    save_adversarials: bool = setting(False, "Keep all perturbed images (adversarials.safetensors).", hashed=False)
