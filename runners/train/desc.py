"""Descriptions of models: a training run, published weights, or the directory of a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from datasets.registry import dataset_info
from foundations.desc import Desc, StoredRun, builds_on
from foundations.environment import resolve_root
from foundations.errors import UsageError, check_choice
from foundations.hparam_fields import Hparams, in_range, setting
from foundations.hparams import AugmentationHparams, TrainingHparams
from foundations.input_hparams import DatasetHparams, ModelHparams, PrecisionHparams
from foundations.results import rounded
from models.sources import label, weights_version
from runners.checks import check_dataset, check_mask_rows, names_in, needs_weights, resolved_model, versions_of
from runners.compute_threat.desc import ThreatDesc
from runners.coverage import Form, coverage_run
from runners.trackers import TrackingHparams
from runners.train.defaults import named_defaults
from threat_specification.registry import check_norm, tangents_named
from threat_specification.safe_moves.changes import changes_named
from training.optimizers import OPTIMIZERS

# Flags of the data that say how its images are read, or made.
OF_IMAGES = ("image_size", "synthetic_shape", "synthetic_classes", "synthetic_train", "synthetic_test")
# The switches that add something to plain training.
ADDED = ("N_aug", "mixup", "adv_train", "N_adv_train", "certified_train")
# Flag -> value, for a training to which nothing is added, but what is usual for the data set.
PLAIN = dict.fromkeys((*ADDED, "augmix", "cutmix"), False) | {"cutout": 0}


@dataclass(frozen=True)
class TrainArgs(Hparams):
    """Anchors for training that differ from those for evaluation."""

    heading: ClassVar[str] = "Anchors of training"

    train_threat_replicate: int = setting(
        0,
        "The repetition of compute_threat that training used, where evaluation uses another (0: the same).",
        check=in_range(0),
    )


def _check_mixing(training: TrainingHparams, augmentation: AugmentationHparams) -> None:
    """Raise UsageError for mixing of the clean part of a loss that has none."""
    alone = training.has_adversary and training.adv_loss == "ce" and not training.adv_clean_weight
    mixed = [name for name in ("mixup", "cutmix") if getattr(augmentation, name)]
    if alone and mixed and not training.adv_train_start_epoch:
        raise UsageError(f"--{mixed[0]}: it mixes clean images, which --adv_clean_weight=0 leaves out of the loss")


def _trains_under_threat(desc: TrainDesc) -> bool:
    return desc.augmentation.N_aug or (desc.training.N_adv_train and not desc.training.without_threat)


def _check_sides(augmentation: AugmentationHparams, dataset: DatasetHparams) -> None:
    """Raise UsageError for squares and shifts that leave nothing of an image."""
    side = min(dataset_info(dataset).shape[1:])
    for flag in ("random_crop", "cutout"):
        if (asked := getattr(augmentation, flag)) >= side:
            raise UsageError(f"--{flag}: expected fewer pixels than the {side} of an image's side, got {asked}")


def _check_without_threat(training: TrainingHparams) -> None:
    """Raise UsageError if no threat bounds the adversary, and a flag says which or how far."""
    if not (training.N_adv_train and training.N_train_without_threat):
        return
    if not training.N_train_safe_moves:
        raise UsageError("--N_train_without_threat: expected also --N_train_safe_moves, got none")
    for flag in ("N_train_tangents", "N_train_weighted", "N_train_segmented"):
        if getattr(training, flag):
            raise UsageError(f"--{flag}: expected no form of the threat beside --N_train_without_threat; leave one out")
    for flag in ("N_adv_train_threshold", "N_adv_train_projection"):  # they would change the hash, and nothing else
        if getattr(training, flag) != getattr(TrainingHparams, flag):
            raise UsageError(f"--{flag}: expected none beside --N_train_without_threat; leave one out")
    if training.N_train_coverage and not training.adv_train:
        raise UsageError("--N_train_coverage: expected a threat, which --N_train_without_threat leaves out")


@dataclass(frozen=True, kw_only=True)
class TrainDesc(Desc):
    """A trained model; it builds on anchors only if its training measures the PD threat."""

    runner = "train"
    purpose = "train a model"
    runner_class = "runners.train.runner:Train"
    replicate_flag = "train_replicate"
    more_flags = (TrainArgs,)

    dataset: DatasetHparams
    model: ModelHparams
    augmentation: AugmentationHparams
    training: TrainingHparams
    precision: PrecisionHparams
    tracking: TrackingHparams = TrackingHparams()
    anchors: ThreatDesc = builds_on(_trains_under_threat)
    coverage: Any = builds_on(lambda desc: desc.coverage is not None, implied=lambda desc: True, default=None)

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> TrainDesc:
        """Build the description from flags; class weights and the replicate of the anchors are those of training."""
        replicate = values.get("train_threat_replicate") or values.get("threat_replicate", 1)
        weighted = values.get("N_adv_train") and values.get("N_train_weighted")
        if weighted and not values.get("class_weights"):
            raise UsageError(needs_weights("N_train_weighted"))
        weights = values["class_weights"] if weighted else ""
        # A model that test calls finetuned was trained from pretrained weights.
        kind = {"finetuned": "pretrained"}.get(values.get("model_type", "scratch"), values.get("model_type", "scratch"))
        more = {"class_weights": weights, "threat_replicate": replicate, "model_type": kind}
        values = {**values, **more}
        made = super().from_flags(values)
        training = made.training
        if not training.N_train_coverage or not training.has_adversary:
            return made
        form = Form.of_training(training)
        form.check("N_train_coverage")
        return dataclasses.replace(made, coverage=coverage_run(values, form))

    def __post_init__(self) -> None:
        check_dataset(self.dataset)
        object.__setattr__(self, "model", resolved_model(self.model, self.dataset))
        check_choice("optimizer", self.training.optimizer, OPTIMIZERS)
        if self.training.adv_train:
            check_norm("adv_train_attack_norm", self.training.adv_train_attack_norm)
        training = self.training
        named = tangents_named("N_train_tangents", training.N_train_tangents)
        moves = changes_named("N_train_safe_moves", training.N_train_safe_moves, training.N_train_safe_moves_count)
        if training.N_adv_train and not training.N_adv_train_attack_iter and not moves:
            raise UsageError(
                "--N_adv_train_attack_iter: expected a number from 1 on, or also --N_train_safe_moves, got 0"
            )
        if moves and training.adv_start == "last":
            raise UsageError("--N_train_safe_moves: they are new at every step; use another --adv_start than last")
        if moves and training.N_train_segmented and training.N_train_background != "radius":
            raise UsageError(
                f"--N_train_safe_moves: expected --N_train_background=radius, got {training.N_train_background}: safe "
                "changes change the whole image, and noise has one radius"
            )
        if training.certified_train and training.certified_train_scaling and self.model.model_type != "scratch":
            raise UsageError(
                "--certified_train_scaling: expected random weights, which it scales, got "
                f"--model_type={self.model.model_type}; leave it out"
            )
        _check_without_threat(training)
        _check_mixing(training, self.augmentation)
        _check_sides(self.augmentation, self.dataset)
        training = dataclasses.replace(
            training, N_train_tangents=named, N_train_safe_moves=moves, N_train_safe_moves_count=0
        )
        object.__setattr__(self, "training", training)
        if self.training.N_adv_train and self.training.N_train_segmented:
            if self.augmentation.augmix:
                raise UsageError(
                    "--augmix: it moves what images show, and the masks of --N_train_segmented stay; leave one out"
                )
            check_mask_rows("N_train_mask_source", self.training.N_train_mask_source, self.dataset)

    def hashed(self) -> dict[str, Any]:
        moves = self.training.N_train_safe_moves if self.training.N_adv_train else ""
        # 2: the perturbation is that of the whole batch, and what is told of training is of unperturbed weights.
        awp = {"awp_version": 2} if self.training.has_adversary and self.training.awp else {}
        # 2: its decay grows to the one given, and whole numbers are no averages.
        average = {"ema_version": 2} if self.training.ema_decay else {}
        # 2: where images cannot be shared out equally, it is random which classes get one more.
        kept_back = {"validation_version": 2} if self.training.validation_fraction else {}
        versions = awp | average | kept_back | weights_version(self.model)
        return super().hashed() | versions_of(names_in(moves)) | versions

    @property
    def variant(self) -> str:
        """The objectives that are on, such as 'N_aug+adv_train'; 'standard' if none is."""
        switches = {
            "N_aug": self.augmentation.N_aug,
            "augmix": self.augmentation.augmix,
            "mixup": self.augmentation.mixup,
            "certified_train": self.training.certified_train,
            "adv_train": self.training.adv_train,
            "N_adv_train": self.training.N_adv_train,
            "safe_moves": self.training.N_adv_train and bool(self.training.N_train_safe_moves),
            "cutmix": self.augmentation.cutmix,
            "trades": self.training.has_adversary and self.training.adv_loss == "trades",
            "awp": self.training.has_adversary and self.training.awp,
        }
        return "+".join(name for name, on in switches.items() if on) or "standard"

    @property
    def name(self) -> str:
        finetuned = "_finetuned" if self.model.model_type == "pretrained" else ""
        return f"{label(self.model)}{finetuned}_{self.variant}"

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """Number of steps and test accuracy."""
        return f"trained {result['steps']} steps; test accuracy {rounded(result['final']['test_accuracy'])}"

    @classmethod
    def headline(cls, result: dict[str, Any]) -> dict[str, str]:
        return {"test accuracy": rounded(result["final"]["test_accuracy"])}


@dataclass(frozen=True, kw_only=True)
class PretrainedDesc(Desc):
    """Published weights, used unchanged; no run of this program made them."""

    runner = "pretrained"

    dataset: DatasetHparams
    model: ModelHparams

    def __post_init__(self) -> None:
        check_dataset(self.dataset)
        object.__setattr__(self, "model", resolved_model(self.model, self.dataset))

    @property
    def name(self) -> str:
        return f"{label(self.model)}_pretrained"

    def hashed(self) -> dict[str, Any]:
        made = {"runner": self.runner, "dataset_name": self.dataset_name, "model": self.model.hashed()}
        return made | weights_version(self.model)


def flags_of_training(train: Any, anchors: ThreatDesc | None) -> dict[str, Any]:
    """Flags by which an evaluation names a training run, where the run itself is called by others.

    anchors   those of the evaluation, if it uses some
    """
    if not isinstance(train, TrainDesc):
        return {}
    flags: dict[str, Any] = {"model_type": "finetuned"} if train.model.model_type == "pretrained" else {}
    used = train.needed_runs().get("anchors")
    if used and anchors and used.replicate != anchors.replicate:
        flags |= {"threat_replicate": anchors.replicate, "train_threat_replicate": used.replicate}
    return flags


def stored_model(train_dir: str, root_dir: str) -> StoredRun:
    """The train run in a directory, given directly or relative to the root."""
    return StoredRun.read(Path(train_dir).expanduser(), resolve_root(root_dir), "train")


def data_of(stored: StoredRun) -> dict[str, Any]:
    """The flags that say what images a stored model takes: the data set, and how its images are read or made."""
    hashed, seed = stored.content["hashed"].get("dataset", {}), ["data_seed"] * (stored.dataset_name == "synthetic")
    of_images = {name: hashed[name] for name in (*OF_IMAGES, *seed) if name in hashed}
    return {"dataset_name": stored.dataset_name} | of_images


def with_stored_model(values: dict[str, Any]) -> tuple[StoredRun, dict[str, Any]]:
    """The train run that --train_dir names, and the flags with its data where they say nothing of that.

    Raises UsageError for flags of other data, whose images or classes would be others than the model learnt.
    """
    stored = stored_model(values["train_dir"], values.get("root_dir", ""))
    theirs = data_of(stored)
    if (given := values.get("dataset_name") or stored.dataset_name) != stored.dataset_name:
        raise UsageError(f"--train_dir: that model was trained on {stored.dataset_name}, not on {given}")
    for name, value in theirs.items():
        if (given := values.get(name, value)) != value and (given or name != "dataset_name"):
            raise UsageError(f"--train_dir: that model was trained with --{name}={value}, not {given}; leave it out")
    return stored, {**values, **theirs}


def trained_alike(values: dict[str, Any], model_name: str) -> TrainDesc:
    """The training run of another architecture: with the flags given, and its own defaults for all other flags."""
    plain = {f.name: f.default for group in (TrainingHparams, AugmentationHparams) for f in dataclasses.fields(group)}
    named = plain | named_defaults(values)
    others = plain | named_defaults({**values, "model_name": model_name, "model_type": "scratch"})
    own = {flag: others[flag] for flag in plain if values.get(flag, named[flag]) == named[flag]}
    scratch = {"model_name": model_name, "model_type": "scratch", "model_source": ""}
    return TrainDesc.from_flags({**values, **own, **scratch})
