"""Hyperparameters of the evaluation of a model. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from foundations.hparam_fields import (
    Hparams,
    in_range,
    named_in_file,
    one_of,
    path_after_kind,
    path_after_names,
    setting,
    whole_path,
    whole_severities,
)
from foundations.hparams import power_of


@dataclass(frozen=True)
class TestingHparams(Hparams):
    """Evaluation: clean accuracy, attacks and their strength, and the images used."""

    __test__ = False  # not a test case, although pytest would collect a class of this name

    heading: ClassVar[str] = "Evaluation"

    standard_eval: bool = setting(False, "Accuracy on clean images.")
    adv_eval: bool = setting(False, "Accuracy under AutoAttack in an isotropic ball.")
    N_adv_eval: bool = setting(False, "Accuracy under attack inside the nonisotropic set {PD <= threshold}.")
    corruption_eval: bool = setting(
        False,
        "Accuracy under common corruptions, made on the fly or read from files (CIFAR-10-C, ImageNet-C).",
        hashed_if_set=True,
    )
    corruption_suites: str = setting(
        "",
        "Corruptions made on the fly: C, C-bar, torchvision, comma-separated, each also with a severity of its own "
        "(C,C-bar:3). Default: C; with --corruption_eval_files, those of the files alone.",
        when="corruption_eval",
        shows="NAME,NAME",
    )
    corruption_severities: tuple[float, ...] = setting(
        (1.0, 2.0, 3.0, 4.0, 5.0), "Severities of the corruptions.", check=whole_severities, when="corruption_eval"
    )
    corruption_eval_files: str = setting(
        "",
        "Folder of corrupted test images: CIFAR-10-C, CIFAR-100-C (.npy), ImageNet-C, 3DCC (folders).",
        path_in=whole_path,
        when="corruption_eval",
    )
    corruption_baseline: str = setting(
        "",
        "Directory of a finished test run with the same corruptions, whose errors are the unit of mCE (Hendrycks and "
        "Dietterich 2019).",
        hashed=False,  # the run's hash and replicate enter instead
        shows="PATH",
    )
    protocol: str = setting(
        "",
        "A frozen protocol, such as pd-bench-1: it fixes images, anchors, sets and attacks (docs/protocol.md).",
        hashed_if_set=True,
    )
    split: str = setting(
        "test",
        "Images to evaluate on: test, or validation (those that training held out by --validation_fraction).",
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
        "Linf", "Norm of the ball: Linf, L2 or another of threat_specification/registry.py.", when="adv_eval"
    )
    adv_test_attack_power: float = setting(
        0.0,
        "Radius of that ball, whatever its norm (0: that of --adv_test_attack_power_<norm>).",
        check=in_range(0),
        hashed_if_set=True,
        when="adv_eval",
    )
    adv_test_attack_power_Linf: float = setting(
        8 / 255,
        "Radius of the l-inf ball; pixels are in [0, 1]; the default depends on the data set.",
        check=in_range(0),
        when="adv_test_attack_norm=Linf",
    )
    adv_test_attack_power_L2: float = setting(
        0.5,
        "Radius of the l2 ball (norm of the whole change; pixels are in [0, 1]); the default depends on the data set.",
        check=in_range(0),
        when="adv_test_attack_norm=L2",
    )
    then_project: str = setting(
        "",
        "Table 3 of the paper: project what --adv_eval finds once onto {PD <= radius of the ball}, and ask the "
        "model again; pd, pd_s, pd_w, pd_t, comma-separated. Not adaptive: an upper bound.",
        when="adv_eval",
        hashed_if_set=True,
        shows="NAME,NAME",
    )
    then_project_method: str = setting(
        "exact",
        "Method of --then_project: exact (nearest point) or scale (as published).",
        check=one_of("exact", "scale"),
        when="then_project",
        hashed_if_set=True,
    )
    then_project_distances: str = setting(
        "",
        "Perceptual distances of these examples before and after: lpips, dreamsim, dreamsim:<backbone> (the paper's is "
        "dino_vitb16), comma-separated.",
        when="then_project",
        hashed_if_set=True,
        shows="NAME,NAME",
    )
    N_threshold: float = setting(0.1, "PD threshold of the nonisotropic set.", check=in_range(0), when="N_adv_eval")
    N_radius: float = setting(
        8 / 255,
        "Its second bound, an l-inf radius; pixels are in [0, 1]; the default depends on the data set.",
        check=in_range(0),
        when="N_adv_eval",
    )
    N_coverage: float = setting(
        0.0,
        "Take the threshold, and the radius of --adv_eval's ball, from evaluate_threat: those that hold this share of "
        "the safe changes, such as 0.95 (0: as given). So sets of different threats compare; a radius cuts them.",
        check=in_range(0, 1),
        when="N_adv_eval|adv_eval",
        hashed_if_set=True,
    )
    N_thresholds: tuple[float, ...] = setting(
        (),
        "Evaluate a grid: besides --N_threshold these PD thresholds, each with every radius.",
        check=in_range(0),
        when="N_adv_eval",
    )
    N_radii: tuple[float, ...] = setting(
        (),
        "Evaluate a grid: besides --N_radius these radii, each with every threshold.",
        check=in_range(0),
        when="N_adv_eval",
    )
    safe_moves: str = setting(
        "",
        "Attack in the set of mixtures of safe changes plus noise too, whose radius is --N_radius: suites or changes "
        "with a severity, such as C:3,torchvision:2 or brighter:3,fog:2 (the flag alone: quick:3).",
        when="N_adv_eval",
        hashed_if_set=True,
        bare="quick:3",
        shows="NAME,NAME",
    )
    safe_moves_count: int = setting(
        0,
        "Only this many of those changes, the same number of each suite (0: all).",
        check=in_range(0),
        when="safe_moves",
        hashed_if_set=True,
    )
    exact_eval: bool = setting(
        False,
        "For small ReLU networks: decide by branch and bound and a mixed-integer program whether the images that no "
        "attack broke are robust in the nonisotropic set.",
        when="N_adv_eval",
        hashed_if_set=True,
    )
    exact_seconds: float = setting(
        60.0,
        "Time limit of --exact_eval, in seconds for each image.",
        check=in_range(0, above=True),
        when="exact_eval",
        hashed_if_set=True,
    )
    certify: bool = setting(
        False,
        "For plain sequences of layers: prove robustness in the nonisotropic set by linear bounds, where they suffice.",
        when="N_adv_eval",
        hashed_if_set=True,
    )
    attacks: str = setting(
        "",
        "Attacks of --N_adv_eval by name, in order, comma-separated; standard and lean are ensembles (default: "
        "standard; docs/evaluation.md).",
        when="N_adv_eval",
        shows="NAME,NAME",
    )
    foreign_attacks: str = setting(
        "",
        "Further attacks, after those: NAME,NAME@FILE.py, functions f(model, images, labels, allowed) -> perturbed "
        "images of that file; their points are projected into the set.",
        check=named_in_file,
        when="N_adv_eval",
        hashed_if_set=True,
        path_in=path_after_names,
        shows="NAME,NAME@FILE.py",
    )
    audit: bool = setting(
        False,
        "Also run each attack alone, and report what it finds in how many passes, beside the best that is known.",
        when="N_adv_eval",
        hashed_if_set=True,
    )
    audit_attacks: str = setting(
        "",
        "Attacks that only the audit runs, besides those of --attacks, comma-separated (all: every attack there is).",
        when="audit",
        hashed_if_set=True,
        shows="NAME,NAME",
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
    tangents: str = setting(
        "",
        "Use the tangent form of PD, in which these changes cost little: brightness, contrast, affine, blur, "
        "comma-separated (all: the flag alone).",
        when="N_adv_eval",
        hashed_if_set=True,
        bare="all",
        shows="NAME,NAME",
    )
    tangent_weight: float = setting(
        0.1,
        "Lambda of the tangent form, at least 0.01: the smaller, the less those changes cost.",
        check=in_range(0.01),
        when="tangents",
        hashed_if_set=True,
    )
    segmented: bool = setting(False, "Use the segmented form of PD: only the object counts.", when="N_adv_eval")
    mask_source: str = setting(
        "center",
        "Where masks of objects come from: center (an ellipse), grabcut, sam:CHECKPOINT or file:MASKS.safetensors.",
        path_in=path_after_kind,
        when="segmented|then_project",
    )
    segmented_norm: str = setting(
        "full",
        "Norm in the segmented form: full, of the whole difference to an anchor (as the paper defines it), or "
        "masked, of the part inside the mask (as its research code computes it).",
        check=one_of("full", "masked"),
        when="segmented|then_project",
    )
    background: str = setting(
        "frozen",
        "What attacks may do outside the mask: nothing (frozen), as inside (radius) or anything (free).",
        check=one_of("frozen", "radius", "free"),
        when="segmented",
    )
    N_attack_iter: int = setting(40, "Steps of each nonisotropic attack.", check=in_range(1), when="N_adv_eval")
    evaluate_only_batch_test: bool = setting(
        False, "Evaluate only as many images as one shard has (--shard_size), for a quick look."
    )
    save_adversarials: bool = setting(
        False, "Keep all perturbed images (adversarials.safetensors); bundle needs them.", hashed=False
    )

    def hashed(self) -> dict[str, Any]:
        """Without the thresholds and radii in whose place --N_coverage takes others."""
        hashed = super().hashed()
        if self.N_coverage:
            power = "adv_test_attack_power"
            hashed = {k: v for k, v in hashed.items() if k != "N_threshold" and not k.startswith(power)}
        return hashed

    @property
    def ball_power(self) -> float:
        """Radius of the isotropic ball, for pixel values in [0, 1]."""
        return power_of(self, "adv_test_attack", self.adv_test_attack_norm)
