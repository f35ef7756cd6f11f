"""What each runner's run is. Torch-free: the command line and `--display_output_location` need no more.

To add a runner: a description here, a file beside it, an entry in cli/runner_registry.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from datasets.registry import DATASETS, dataset_info
from foundations.desc import Desc, StoredRun, builds_on
from foundations.download_hparams import DownloadHparams
from foundations.environment import resolve_root
from foundations.errors import UsageError
from foundations.hparams import (
    AugmentationHparams,
    DatasetHparams,
    ModelHparams,
    TestingHparams,
    ThreatHparams,
    TrainingHparams,
)
from foundations.perturbation_hparams import PerturbationHparams, split
from models.registry import check_fit
from models.robustbench_registry import selection
from models.sources import label, resolved, zoo_entry
from runners.recipes import named_defaults


@dataclass(frozen=True, kw_only=True)
class ThreatDesc(Desc):
    """A choice of anchors."""

    runner = "compute_threat"
    replicate_flag = "threat_replicate"

    dataset: DatasetHparams
    threat: ThreatHparams

    def __post_init__(self) -> None:
        _check_dataset(self.dataset)

    @property
    def name(self) -> str:
        return f"{self.threat.selection}_{self.threat.per_label}"

    def is_satisfied_by(self, result: dict[str, Any]) -> bool:
        halves_missing = self.threat.halves and "halves" not in result
        refused = self.threat.strict and result["dropped"]["count"]
        return not halves_missing and not refused


def _trains_under_threat(desc: TrainDesc) -> bool:
    return desc.augmentation.N_aug or desc.training.N_adv_train


@dataclass(frozen=True, kw_only=True)
class TrainDesc(Desc):
    """A trained model; it builds on anchors only where its training measures the PD threat."""

    runner = "train"
    replicate_flag = "train_replicate"

    dataset: DatasetHparams
    model: ModelHparams
    augmentation: AugmentationHparams
    training: TrainingHparams
    anchors: ThreatDesc = builds_on(_trains_under_threat)

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> TrainDesc:
        """As for every description; class weights and the replicate of the anchors are those of training."""
        replicate = values.get("train_threat_replicate") or values.get("threat_replicate", 1)
        weighted = values.get("N_adv_train") and values.get("N_train_weighted")
        if weighted and not values.get("class_weights"):
            raise UsageError(_needs_weights("N_train_weighted"))
        weights = values["class_weights"] if weighted else ""
        # What test calls finetuned is what training goes on from.
        kind = {"finetuned": "pretrained"}.get(values.get("model_type", "scratch"), values.get("model_type", "scratch"))
        more = {"class_weights": weights, "threat_replicate": replicate, "model_type": kind}
        return super().from_flags({**values, **more})

    def __post_init__(self) -> None:
        _check_dataset(self.dataset)
        object.__setattr__(self, "model", _resolved(self.model, self.dataset))

    @property
    def variant(self) -> str:
        """The objectives that are on, as in 'N_aug+adv_train'; 'standard' when none is."""
        switches = {
            "N_aug": self.augmentation.N_aug,
            "mixup": self.augmentation.mixup,
            "adv_train": self.training.adv_train,
            "N_adv_train": self.training.N_adv_train,
            "cutmix": self.augmentation.cutmix,
            "trades": self.training.has_adversary and self.training.adv_loss == "trades",
            "awp": self.training.has_adversary and self.training.awp,
        }
        return "+".join(name for name, on in switches.items() if on) or "standard"

    @property
    def name(self) -> str:
        finetuned = "_finetuned" if self.model.model_type == "pretrained" else ""
        return f"{label(self.model)}{finetuned}_{self.variant}"


@dataclass(frozen=True, kw_only=True)
class PretrainedDesc(Desc):
    """Published weights as they are; no run of ours made them."""

    runner = "pretrained"

    dataset: DatasetHparams
    model: ModelHparams

    def __post_init__(self) -> None:
        _check_dataset(self.dataset)
        object.__setattr__(self, "model", _resolved(self.model, self.dataset))

    @property
    def name(self) -> str:
        return f"{label(self.model)}_pretrained"

    def hashed(self) -> dict[str, Any]:
        return {"runner": self.runner, "dataset_name": self.dataset_name, "model": self.model.hashed()}


def stored_model(train_dir: str, root_dir: str) -> StoredRun:
    """The train run in a directory, as given or below the root."""
    return StoredRun.read(Path(train_dir), resolve_root(root_dir), "train")


def _tests_under_threat(desc: TestDesc) -> bool:
    return desc.testing.N_adv_eval


@dataclass(frozen=True, kw_only=True)
class TestDesc(Desc):
    """An evaluation of a trained model, named by its training flags or by its directory."""

    __test__ = False  # not a test case, whatever pytest reads into the name

    runner = "test"
    replicate_flag = "test_replicate"

    dataset: DatasetHparams
    testing: TestingHparams
    train: TrainDesc = builds_on()
    anchors: ThreatDesc = builds_on(_tests_under_threat)

    def is_satisfied_by(self, result: dict[str, Any]) -> bool:
        return not self.testing.save_adversarials or result["saved_adversarials"]

    @property
    def train_anchors(self) -> ThreatDesc | None:
        """The anchors that training used, where the evaluation uses others."""
        used = self.train.needed_runs().get("anchors") if isinstance(self.train, TrainDesc) else None
        if used is None or not self.testing.N_adv_eval:
            return None
        same = _without_weights(used), _without_weights(self.anchors)
        return used if (same[0].hash, used.replicate) != (same[1].hash, self.anchors.replicate) else None

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> TestDesc:
        """As for every description; with train_dir, the model is the one stored there."""
        train_dir = values.get("train_dir")
        if values.get("weighted") and not values.get("class_weights"):
            raise UsageError(_needs_weights("weighted"))
        if not train_dir:
            made = cls._with_own_weights(super().from_flags(values), values)
            is_pretrained = values.get("model_type") == "pretrained"
            return dataclasses.replace(made, train=PretrainedDesc.from_flags(values)) if is_pretrained else made
        stored = stored_model(train_dir, values.get("root_dir", ""))
        dataset_name = values.get("dataset_name") or stored.dataset_name
        if dataset_name != stored.dataset_name:
            raise UsageError(f"--train_dir: that model was trained on {stored.dataset_name}, not on {dataset_name}")
        values = {**values, "dataset_name": dataset_name, **stored.content["hashed"]["model"]}
        made = super().from_flags(values)
        return dataclasses.replace(cls._with_own_weights(made, values), train=stored)

    @classmethod
    def _with_own_weights(cls, made: Any, values: dict[str, Any]) -> Any:
        """Class weights are those of the evaluation where it is weighted, whatever training used."""
        if values.get("weighted"):
            return made
        return dataclasses.replace(made, anchors=ThreatDesc.from_flags({**values, "class_weights": ""}))

    def __post_init__(self) -> None:
        _check_dataset(self.dataset)
        testing = self.testing
        if not (testing.standard_eval or testing.adv_eval or testing.N_adv_eval):
            raise UsageError("test: nothing to do; add --standard_eval, --adv_eval or --N_adv_eval")

    @property
    def model(self) -> ModelHparams:
        """The model under test."""
        train: TrainDesc | PretrainedDesc | StoredRun = self.train
        return ModelHparams(**train.content["hashed"]["model"]) if isinstance(train, StoredRun) else train.model

    @property
    def model_name(self) -> str:
        """The canonical name of the architecture under test."""
        return self.model.model_name

    @property
    def name(self) -> str:
        return self.train.name + ("" if self.testing.split == "test" else f"_{self.testing.split}")


def _trained_alike(values: dict[str, Any], model_name: str) -> TrainDesc:
    """The training run of another architecture: with the flags given, and its own defaults where none was given."""
    plain = {f.name: f.default for group in (TrainingHparams, AugmentationHparams) for f in dataclasses.fields(group)}
    dataset_name, model_type = values["dataset_name"], values.get("model_type", "scratch")
    named = plain | named_defaults(dataset_name, values.get("model_name", ""), model_type)
    others = plain | named_defaults(dataset_name, model_name)
    own = {flag: others[flag] for flag in plain if values.get(flag, named[flag]) == named[flag]}
    return TrainDesc.from_flags({**values, **own, "model_name": model_name})


@dataclass(frozen=True, kw_only=True)
class EvaluateThreatDesc(Desc):
    """A measurement of threats on perturbed test images.

    train      the model whose adversarial examples or morphs are measured, where asked for
    judge      who must see a morph as the other class
    features   the model in whose features --perceptual=model:<architecture> measures
    """

    runner = "evaluate_threat"
    replicate_flag = "evaluate_replicate"

    dataset: DatasetHparams
    perturbation: PerturbationHparams
    anchors: ThreatDesc = builds_on()
    train: Any = builds_on(lambda desc: desc.train is not None)
    judge: Any = builds_on(lambda desc: desc.judge is not None, implied=lambda desc: True)
    features: Any = builds_on(lambda desc: desc.features is not None, implied=lambda desc: desc.train is not None)

    @classmethod
    def hparams_classes(cls) -> Any:
        yield from dict.fromkeys([*super().hparams_classes(), *TrainDesc.hparams_classes()])

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> EvaluateThreatDesc:
        """The runs of models are there where something asks for them."""
        perturbation = PerturbationHparams(
            **{f.name: values[f.name] for f in dataclasses.fields(PerturbationHparams) if f.name in values}
        )
        dataset = DatasetHparams(
            **{f.name: values[f.name] for f in dataclasses.fields(DatasetHparams) if f.name in values}
        )
        _check_dataset(dataset)
        seen = [name.partition(":")[2] for name in split(perturbation.perceptual) if ":" in name]
        if len(seen) > 1:
            raise UsageError(f"--perceptual: expected at most one model:<architecture>, got {len(seen)}")
        return cls(
            seed=values.get("seed", 0),
            replicate=values.get(cls.replicate_flag, 1),
            dataset=dataset,
            perturbation=perturbation,
            anchors=ThreatDesc.from_flags(values),
            train=cls._model(values) if perturbation.morphs or perturbation.adversarials else None,
            judge=_trained_alike(values | dict.fromkeys(TOGGLES, False), perturbation.judge_name)
            if perturbation.morphs
            else None,
            features=_trained_alike(values, seen[0]) if seen else None,
        )

    @staticmethod
    def _model(values: dict[str, Any]) -> TrainDesc | StoredRun:
        if values.get("train_dir"):
            return stored_model(values["train_dir"], values.get("root_dir", ""))
        if not values.get("model_name"):
            raise UsageError(
                "--morphs and --adversarials need a trained model: add --model_name and its training flags"
            )
        return TrainDesc.from_flags(values)

    def __post_init__(self) -> None:
        if self.judge is not None and (self.judge.hash, self.judge.replicate) == (
            self.train.hash,
            self.train.replicate,
        ):
            raise UsageError("--judge_name: expected another model than the one that makes the morphs, got the same")

    @property
    def name(self) -> str:
        return self.anchors.name + ("" if self.train is None else f"_{self.train.name}")


@dataclass(frozen=True, kw_only=True)
class DownloadDesc(Desc):
    """Weights of RobustBench's zoo below the root; which of them are there may have changed."""

    runner = "download_pretrained"
    always_anew = True

    dataset: DatasetHparams
    download: DownloadHparams

    def __post_init__(self) -> None:
        _check_dataset(self.dataset)

    @property
    def threat_model(self) -> str:
        return self.download.threat_model

    def directory(self, root: Path) -> Path:
        return root / "models" / self.dataset_name / self.threat_model


@dataclass(frozen=True, kw_only=True)
class ReportDesc(Desc):
    """A page over every finished run of a data set, or of all data sets when none is named."""

    runner = "report"
    always_anew = True

    dataset: DatasetHparams

    def __post_init__(self) -> None:
        if self.dataset_name:
            dataset_info(self.dataset_name)

    def directory(self, root: Path) -> Path:
        return root / "reports" / (self.dataset_name or "all")


# Booleans of training that --toggle_<name> varies.
TOGGLES = ("N_aug", "mixup", "adv_train", "N_adv_train")


@dataclass(frozen=True, kw_only=True)
class MultiDesc(Desc):
    """Several runs of one runner, one after the other: every combination of the toggled booleans.

    With pretrained models, of every model in a comma-separated --model_name; of the short selection when none is named.
    """

    child_class: ClassVar[type[Desc]] = Desc

    children: tuple[Any, ...] = ()
    toggled: tuple[str, ...] = ()
    model_names: tuple[str, ...] = ()

    @classmethod
    def hparams_classes(cls) -> Any:
        yield from cls.child_class.hparams_classes()

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> Any:
        """One child for each combination; without toggles, the one that the flags describe."""
        toggled = tuple(name for name in TOGGLES if values.get(f"toggle_{name}"))
        combinations: list[dict[str, bool]] = [{}]
        for name in toggled:
            combinations = [{**rest, name: value} for rest in combinations for value in (False, True)]
        names = _model_names(values)
        children = [
            cls.child_class.from_flags({**values, "model_name": name, **combination})
            for name in names
            for combination in combinations
        ]
        # Toggles make no difference to a test of published weights.
        distinct = tuple({(child.hash, child.replicate): child for child in children}.values())
        return cls(seed=values.get("seed", 0), children=distinct, toggled=toggled, model_names=names)

    @property
    def dataset_name(self) -> str:
        return self.children[0].dataset_name

    @property
    def name(self) -> str:
        one = self.children[0].name.rsplit("_standard", 1)[0]
        return "+".join([one if len(self.model_names) == 1 else f"{len(self.model_names)}_models", *self.toggled])

    def hashed(self) -> dict[str, Any]:
        children = [{"hash": child.hash, "replicate": child.replicate} for child in self.children]
        return {"runner": self.runner, "children": children}


@dataclass(frozen=True, kw_only=True)
class MultiTrainDesc(MultiDesc):
    """Training runs over all combinations of the toggled booleans."""

    runner = "multi_train"
    child_class = TrainDesc


@dataclass(frozen=True, kw_only=True)
class MultiTestDesc(MultiDesc):
    """Evaluations of the models of `multi_train` with the same toggles."""

    runner = "multi_test"
    child_class = TestDesc


DESCRIPTIONS: dict[str, type[Desc]] = {
    "compute_threat": ThreatDesc,
    "evaluate_threat": EvaluateThreatDesc,
    "train": TrainDesc,
    "multi_train": MultiTrainDesc,
    "test": TestDesc,
    "multi_test": MultiTestDesc,
    "report": ReportDesc,
    "download_pretrained": DownloadDesc,
}


def _without_weights(anchors: ThreatDesc) -> ThreatDesc:
    return dataclasses.replace(anchors, threat=dataclasses.replace(anchors.threat, class_weights=""))


def _needs_weights(flag: str) -> str:
    return f"--{flag}: expected --class_weights=FILE, as compute_threat was given them, got none"


def _model_names(values: dict[str, Any]) -> tuple[str, ...]:
    name = values.get("model_name", "")
    if values.get("model_type", "scratch") == "scratch" or values.get("train_dir"):
        return (name,)
    names = tuple(part.strip() for part in name.split(",") if part.strip())
    if not names and not values.get("model_source"):
        names = tuple(selection(values.get("dataset_name", ""), values.get("threat_model", "Linf")))
    return names or ("",)


def _resolved(model: ModelHparams, dataset: DatasetHparams) -> ModelHparams:
    """The model by its canonical name; refuses one that does not take the images of the data set."""
    model = resolved(model, dataset.dataset_name, DATASETS)
    if zoo_entry(model, dataset.dataset_name) is None:
        check_fit(model.model_name, dataset_info(dataset))
    return model


def _check_dataset(dataset: DatasetHparams) -> None:
    if not dataset.dataset_name:
        raise UsageError("--dataset_name is required, for example --dataset_name=mnist_5k")
    dataset_info(dataset)
