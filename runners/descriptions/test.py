"""test: evaluations of a model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from foundations.desc import Desc, StoredRun, builds_on
from foundations.errors import UsageError
from foundations.hparams import DatasetHparams, ModelHparams, TestingHparams
from runners.descriptions.checks import check_dataset, check_mask_rows, needs_weights
from runners.descriptions.compute_threat import ThreatDesc, without_weights
from runners.descriptions.train import PretrainedDesc, TrainDesc, stored_model

# Raised where the attacks change: what another ensemble found is another run, and stronger attacks are not answered
# with an old figure.
ENSEMBLE = 2


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

    def hashed(self) -> dict[str, Any]:
        attacked = self.testing.adv_eval or self.testing.N_adv_eval
        return super().hashed() | ({"ensemble": ENSEMBLE} if attacked else {})

    @property
    def train_anchors(self) -> ThreatDesc | None:
        """The anchors that training used, where the evaluation uses others."""
        used = self.train.needed_runs().get("anchors") if isinstance(self.train, TrainDesc) else None
        if used is None or not self.testing.N_adv_eval:
            return None
        same = without_weights(used), without_weights(self.anchors)
        return used if (same[0].hash, used.replicate) != (same[1].hash, self.anchors.replicate) else None

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> TestDesc:
        """As for every description; with train_dir, the model is the one stored there."""
        train_dir = values.get("train_dir")
        if values.get("weighted") and not values.get("class_weights"):
            raise UsageError(needs_weights("weighted"))
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
        check_dataset(self.dataset)
        testing = self.testing
        if not (testing.standard_eval or testing.adv_eval or testing.N_adv_eval):
            raise UsageError("test: nothing to do; add --standard_eval, --adv_eval or --N_adv_eval")
        if testing.split == "validation":
            self._check_validation()

    def _check_validation(self) -> None:
        """What was held out is found anew: from the same training images, or images trained on would be among it."""
        if self.testing.N_adv_eval and self.testing.segmented:
            check_mask_rows("mask_source", self.testing.mask_source, self.dataset)
        if isinstance(self.train, StoredRun):
            trained_on, here = self.train.content["hashed"].get("dataset", {}), self.dataset.hashed()
            names = [name for name in {**trained_on, **here} if trained_on.get(name) != here.get(name)]
            if names:
                told = ", ".join(
                    f"--{name}={trained_on[name]}" if name in trained_on else f"no --{name}" for name in names
                )
                raise UsageError(f"--split=validation: that model was trained on other images; expected {told}")

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
