"""All hyperparameters, in groups. Torch-free; `foundations/settings.py` says how a field is declared.

Those of training are in `training_hparams.py`, of data sets and models in `data_hparams.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from foundations.data_hparams import DatasetHparams, ModelHparams
from foundations.settings import Hparams, chunks, in_range, one_of, path_after_kind, setting, whole_path
from foundations.training_hparams import AugmentationHparams, TrainingHparams

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
class TestingHparams(Hparams):
    """Which evaluations, how strong, and on what."""

    __test__ = False  # not a test case, whatever pytest reads into the name

    standard_eval: bool = setting(False, "Accuracy on clean images.")
    adv_eval: bool = setting(False, "Accuracy under AutoAttack in an isotropic ball.")
    N_adv_eval: bool = setting(False, "Accuracy under attack inside the nonisotropic set {PD <= threshold}.")
    split: str = setting(
        "test",
        "Images to evaluate on: test, or validation, which training held out (--validation_fraction), to choose by.",
        check=one_of("test", "validation"),
    )
    num_examples: int = setting(
        0, "Evaluate a seeded, class-stratified subset of this many of them (0: all).", check=in_range(0)
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
