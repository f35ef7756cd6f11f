"""Hyperparameters: frozen dataclasses whose fields carry their own help, range and role in the hash.

Torch-free. The command line (`cli/parsing.py`) and the run hash (`foundations/desc.py`) are both
derived from these declarations; nothing about a field is said twice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from foundations.errors import UsageError
from foundations.files import file_digest
from foundations.step import Step

Check = Callable[[Any], "str | None"]  # returns what was expected when the value is unfit, else None


def setting(
    default: Any,
    help: str,
    *,
    check: Check | None = None,
    hashed: bool = True,
    when: str = "",
    alias: str = "",
    path_in: Callable[[str], str] | None = None,
) -> Any:
    """Declare one hyperparameter.

    check   returns what was expected if the value is unfit, else None; numbers must be finite in any case
    hashed  False for what only changes speed or display: it never enters the hash of a run
    when    name of a boolean (or a choice, "name=value") of the same class without which this field cannot
            change a result; it enters the hash only where that one is on; "a|b" means either
    alias   another name of the flag, for published recipes
    path_in the path that a value holds, or ""; a file enters the hash by its content, not by its name
    """
    metadata = {"help": help, "check": check, "hashed": hashed, "when": when, "alias": alias, "path_in": path_in}
    return dataclasses.field(default=default, kw_only=True, metadata=metadata)


def in_range(low: float, high: float = math.inf, *, above: bool = False) -> Check:
    """Accept low <= value <= high (low < value when `above`)."""
    opening = "(" if above else "["
    closing = ")" if high == math.inf else "]"
    expected = f"a number in {opening}{low:g}, {'inf' if high == math.inf else format(high, 'g')}{closing}"

    def check(value: Any) -> str | None:
        values = value if isinstance(value, tuple) else (value,)
        fits = all((low < v if above else low <= v) and v <= high for v in values)
        return None if fits else expected

    return check


def one_of(*choices: str) -> Check:
    """Accept exactly these names."""
    return lambda value: None if value in choices else f"one of {', '.join(choices)}"


def steps(value: str) -> str | None:
    """Accept 40ep or 5000it."""
    try:
        Step.check(value)
    except UsageError:
        return "a number of epochs or iterations such as 40ep or 5000it"
    return None


def steps_list(value: str) -> str | None:
    """Accept an empty string or a comma-separated list of steps."""
    return next((expected for part in value.split(",") if value and (expected := steps(part))), None)


def whole_path(value: str) -> str:
    """The value is a path, perhaps after a `kind:`."""
    return value.partition(":")[2] or value


def path_after_kind(value: str) -> str:
    """The path of `kind:PATH` or `kind:model@PATH`; a kind alone has none."""
    argument = value.partition(":")[2]
    return argument.partition("@")[2] or argument


def chunks(value: bool | int) -> str | None:
    """Accept True (chosen by size) or a positive number of chunks."""
    return None if value is True or (value is not False and value >= 1) else "True or a number of chunks from 1 up"


@dataclass(frozen=True)
class Hparams:
    """Base of all groups of hyperparameters: checks types, finiteness and ranges when made."""

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _fit_type(field.name, types[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            check = field.metadata["check"]
            if check is not None and (expected := check(value)):
                raise UsageError(f"--{field.name}: expected {expected}, got {format_value(value)}")

    def hashed(self) -> dict[str, Any]:
        """The fields that can change a result, defaults included."""
        return {
            field.name: self._hashed_value(field)
            for field in dataclasses.fields(self)
            if field.metadata["hashed"] and self.is_active(field.metadata["when"])
        }

    def _hashed_value(self, field: dataclasses.Field) -> Any:
        value, path_in = getattr(self, field.name), field.metadata["path_in"]
        path = path_in(value) if path_in else ""
        if not path:
            return value
        try:
            return f"{value.removesuffix(path)}{file_digest(path)}"
        except OSError as error:
            raise UsageError(f"--{field.name}: cannot read {path}: {error.strerror}") from error

    def is_active(self, when: str) -> bool:
        """Whether a condition such as 'N_aug' or 'adv_train_attack_norm=L2' holds here, with what it rests on."""
        return not when or any(self._holds(condition) for condition in when.split("|"))

    def _holds(self, condition: str) -> bool:
        name, _, wanted = condition.partition("=")
        value = getattr(self, name)
        holds = value == wanted if wanted else bool(value)
        return holds and self.is_active(self.__dataclass_fields__[name].metadata["when"])


def _fit_type(name: str, expected: Any, value: Any) -> Any:
    """The value with ints widened to floats where floats are declared; refuses other types and NaN."""
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if expected == tuple[float, ...]:
        value = tuple(float(v) for v in value)
    elif not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise UsageError(f"--{name}: expected {getattr(expected, '__name__', expected)}, got {value!r}")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UsageError(f"--{name}: expected a finite number, got {number}")
    return value


def format_value(value: Any) -> str:
    """A value as one would write it on the command line: 8/255 instead of 0.03137..., lists with commas."""
    if isinstance(value, bool) or not isinstance(value, (float, tuple)):
        return str(value)
    if isinstance(value, tuple):
        return ",".join(format_value(v) for v in value)
    is_8_bit_level = len(repr(value)) > 8 and (value * 255).is_integer()
    return f"{round(value * 255)}/255" if is_8_bit_level else f"{value!r}".removesuffix(".0")


@dataclass(frozen=True)
class DatasetHparams(Hparams):
    """Which data."""

    dataset_name: str = setting("", "Name of a data set in the registry (datasets/registry.py).")


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
class ModelHparams(Hparams):
    """Which model."""

    model_name: str = setting("", "Architecture such as lenet, conv, resnet_8, with or without a data set's prefix.")
    model_type: str = setting(
        "scratch", "Where the weights start: scratch (random; the only one so far).", check=one_of("scratch")
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


@dataclass(frozen=True)
class PerturbationHparams(Hparams):
    """Which perturbations of an image are measured."""

    severities: tuple[float, ...] = setting(
        (1.0, 2.0, 3.0, 4.0, 5.0), "Severities of the safe perturbations.", check=in_range(1, 5)
    )
