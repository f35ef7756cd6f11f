"""evaluate_threat: threats on perturbed images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foundations.desc import Desc, StoredRun, builds_on
from foundations.errors import UsageError
from foundations.hparams import DatasetHparams
from foundations.perturbation_hparams import PerturbationHparams, split
from runners.descriptions.checks import check_dataset
from runners.descriptions.compute_threat import ThreatDesc
from runners.descriptions.train import TOGGLES, TrainDesc, stored_model, trained_alike


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
        perturbation, dataset = PerturbationHparams.of(values), DatasetHparams.of(values)
        check_dataset(dataset)
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
            judge=trained_alike(values | dict.fromkeys(TOGGLES, False), perturbation.judge_name)
            if perturbation.morphs
            else None,
            features=trained_alike(values, seen[0]) if seen else None,
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
