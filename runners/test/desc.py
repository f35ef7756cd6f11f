"""Description of the test runner: evaluations of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

from foundations.desc import Desc, StoredRun, builds_on
from foundations.errors import UsageError, check_choice
from foundations.hparam_fields import Hparams, setting
from foundations.input_hparams import DatasetHparams, ModelHparams, PrecisionHparams
from foundations.testing_hparams import TestingHparams
from runners.checks import (
    FEWER_SEVERITIES,
    check_dataset,
    check_distances,
    check_mask_rows,
    names_in,
    needs_weights,
    versions_of,
)
from runners.compute_threat.desc import ThreatDesc, without_weights
from runners.coverage import Form, coverage_run
from runners.test import protocol, summary
from runners.test.corruption_desc import baseline_of, check_baseline, resolved, suites_at
from runners.trackers import TrackingHparams
from runners.train.desc import PretrainedDesc, TrainDesc, flags_of_training, with_stored_model
from threat_specification.registry import check_norm, tangents_named
from threat_specification.safe_moves.changes import changes_named


def _by_probability_margins(testing: TestingHparams) -> bool:
    """True if an attack that is chosen, or only audited, takes differences of probabilities as its loss."""
    names = names_in(testing.attacks) + names_in(testing.audit_attacks)
    return any(name in ("lean", "all") or "_pm" in name for name in names)


# Version of the attacks, increased when they change: results of another ensemble belong to another run, so that an old
# figure is never returned for stronger attacks.
ENSEMBLE = 4
# Fault of earlier figures -> True for runs that it concerned: these are other runs now, for the same reason.
MENDED: dict[str, Callable[[TestingHparams], bool]] = {
    "proofs of small layers and large logits": lambda of: of.N_adv_eval and of.exact_eval,
    "images that bounds of single units left undecided": lambda of: of.N_adv_eval and of.exact_eval,
    "a free background in sets of every size": lambda of: of.N_adv_eval and of.segmented and of.background == "free",
    "corruptions without the severity": lambda of: (
        of.corruption_eval and 1 not in suites_at(of).get("torchvision", (1,))
    ),
    FEWER_SEVERITIES: lambda of: of.corruption_eval and bool(of.corruption_eval_files),
    "images with empty masks": lambda of: (
        of.mask_source != "center" and (of.segmented or "pd_s" in forms_of(of.then_project))
    ),
    "samples of the first classes": lambda of: bool(of.num_examples) or of.evaluate_only_batch_test,
    "the margin of probabilities on confident networks": lambda of: of.N_adv_eval and _by_probability_margins(of),
    "the form that then_project has": lambda of: (
        of.adv_eval and of.N_adv_eval and bool(of.then_project and (of.tangents or of.background != "frozen"))
    ),
}
# Fault -> the evaluations whose figures are compared, and that it concerned. Those of others are never compared.
COMPARED: dict[str, tuple[str, ...]] = {
    "a free background in sets of every size": ("N_adv", summary.OTHER_ANCHORS),
    "corruptions without the severity": ("corruption",),
    FEWER_SEVERITIES: ("corruption",),
    "images with empty masks": ("N_adv", summary.OTHER_ANCHORS, summary.MOVES),
    "samples of the first classes": ("standard", "corruption", "adv", "N_adv", summary.OTHER_ANCHORS, summary.MOVES),
    "the margin of probabilities on confident networks": ("N_adv", summary.OTHER_ANCHORS, summary.MOVES),
}


def faults_left(evaluation: str, hashed: Mapping[str, Any]) -> list[str]:
    """The faults that figures of an evaluation still have in a stored run, which is older than the mends.

    hashed   the hashed part of its description
    """
    stored: Any = SimpleNamespace(**vars(TestingHparams()) | hashed.get("testing", {}))
    known = hashed.get("mended", ())
    left = [name for name, concerns in MENDED.items() if name not in known and concerns(stored)]
    return [name for name in left if evaluation in COMPARED.get(name, ())]


@dataclass(frozen=True)
class ModelByDirectory(Hparams):
    """A trained model, given by its directory instead of its training flags."""

    heading: ClassVar[str] = "Model by its directory"

    train_dir: str = setting("", "Directory of the train run.", hashed=False, shows="PATH")


def _tests_under_threat(desc: TestDesc) -> bool:
    return desc.testing.N_adv_eval or bool(desc.testing.adv_eval and desc.testing.then_project)


# --then_project: forms of the threat onto whose sets the adversarial examples of the ball are projected.
FORMS = ("pd", "pd_s", "pd_w", "pd_t")


def forms_of(flag: str) -> list[str]:
    """The names in --then_project; raises UsageError for an unknown one."""
    names = names_in(flag)
    for name in names:
        check_choice("then_project", name, FORMS)
    return names


def _is_weighted(values: dict[str, Any]) -> bool:
    """True if an evaluation uses class weights."""
    return bool(values.get("weighted")) or "pd_w" in forms_of(values.get("then_project", ""))


@dataclass(frozen=True, kw_only=True)
class TestDesc(Desc):
    """An evaluation of a trained model, named by its training flags or by its directory."""

    __test__ = False  # not a test case, although pytest would collect a class of this name

    runner = "test"
    purpose = "measure accuracy: clean, under isotropic and under nonisotropic attacks"
    runner_class = "runners.test.runner:Test"
    replicate_flag = "test_replicate"
    more_flags = (ModelByDirectory,)

    dataset: DatasetHparams
    testing: TestingHparams
    precision: PrecisionHparams
    tracking: TrackingHparams = TrackingHparams()
    train: TrainDesc = builds_on()
    anchors: ThreatDesc = builds_on(_tests_under_threat)
    coverage: Any = builds_on(lambda desc: desc.coverage is not None, implied=lambda desc: True, default=None)
    baseline: Any = builds_on(lambda desc: desc.baseline is not None, default=None)

    def is_satisfied_by(self, result: dict[str, Any]) -> bool:
        return not self.testing.save_adversarials or result["saved_adversarials"]

    def hashed(self) -> dict[str, Any]:
        attacked = self.testing.adv_eval or self.testing.N_adv_eval
        mended = [name for name, concerns in MENDED.items() if concerns(self.testing)]
        made = list(suites_at(self.testing)) if self.testing.corruption_eval else []
        made += names_in(self.testing.safe_moves) if self.testing.N_adv_eval else []
        versions = ({"ensemble": ENSEMBLE} if attacked else {}) | ({"mended": mended} if mended else {})
        return super().hashed() | versions | versions_of(made)

    def flags(self) -> dict[str, Any]:
        return super().flags() | flags_of_training(self.train, self.needed_runs().get("anchors"))

    @property
    def train_anchors(self) -> ThreatDesc | None:
        """The anchors that training used, if the evaluation uses others; else None."""
        used = self.train.needed_runs().get("anchors") if isinstance(self.train, TrainDesc) else None
        if used is None or not self.testing.N_adv_eval:
            return None
        same = without_weights(used), without_weights(self.anchors)
        return used if (same[0].hash, used.replicate) != (same[1].hash, self.anchors.replicate) else None

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> TestDesc:
        """Build the description from flags; with --train_dir, the model is the one stored there."""
        train_dir = values.get("train_dir")
        if _is_weighted(values) and not values.get("class_weights"):
            raise UsageError(needs_weights("weighted" if values.get("weighted") else "then_project=pd_w"))
        if not train_dir:
            protocol.check_flags(values)
            made = cls._with_own_inputs(super().from_flags(values), values)
            is_pretrained = values.get("model_type") == "pretrained"
            return dataclasses.replace(made, train=PretrainedDesc.from_flags(values)) if is_pretrained else made
        stored, values = with_stored_model(values)
        protocol.check_flags(values)
        values = {**values, **stored.content["hashed"]["model"]}
        made = super().from_flags(values)
        return dataclasses.replace(cls._with_own_inputs(made, values), train=stored)

    @classmethod
    def _with_own_inputs(cls, made: Any, values: dict[str, Any]) -> Any:
        """The description with class weights, thresholds and a baseline only where the evaluation uses them."""
        made = dataclasses.replace(made, baseline=baseline_of(made.testing, values))
        if not _is_weighted(values):
            values = {**values, "class_weights": ""}
            made = dataclasses.replace(made, anchors=ThreatDesc.from_flags(values))
        testing = made.testing
        if not testing.N_coverage or not (testing.N_adv_eval or testing.adv_eval):
            return made
        form = Form.of_test(testing)
        form.check("N_coverage")
        return dataclasses.replace(made, coverage=coverage_run(values, form))

    def __post_init__(self) -> None:
        check_dataset(self.dataset)
        testing = self.testing
        # Evaluations of their own in the set of another, and what belongs to its attacks.
        for name in ("safe_moves", "exact_eval", "certify", "audit", "foreign_attacks"):
            if getattr(testing, name) and not testing.N_adv_eval:
                raise UsageError(f"--{name}: expected --N_adv_eval too, whose set it takes")
        if not (testing.standard_eval or testing.corruption_eval or testing.adv_eval or testing.N_adv_eval):
            raise UsageError("test: nothing to do; add --standard_eval, --adv_eval, --N_adv_eval or --corruption_eval")
        if testing.adv_eval:
            check_norm("adv_test_attack_norm", testing.adv_test_attack_norm)
        named = tangents_named("tangents", testing.tangents)
        moves = changes_named("safe_moves", testing.safe_moves, testing.safe_moves_count)
        if moves and testing.segmented and testing.background != "radius":
            raise UsageError(
                f"--safe_moves: expected --background=radius, got {testing.background}: safe changes change the whole "
                "image, and noise has one radius"
            )
        for flag in ("attacks", "audit_attacks"):
            chosen = names_in(getattr(testing, flag))
            if twice := [name for name in chosen if chosen.count(name) > 1]:
                raise UsageError(f"--{flag}: expected each attack once, got {twice[0]} {chosen.count(twice[0])} times")
        if moves and "post_hoc" in names_in(testing.attacks):
            raise UsageError("--safe_moves: post_hoc scales noise alone, it knows no safe changes; leave it out")
        # With the changes spelt out, their number says nothing more.
        testing = dataclasses.replace(testing, tangents=named, safe_moves=moves, safe_moves_count=0)
        object.__setattr__(self, "testing", resolved(testing))
        if self.baseline is not None:
            faults = faults_left("corruption", self.baseline.content["hashed"])
            check_baseline(self.baseline, self.dataset, self.testing, faults)
        if testing.exact_eval and self.anchors.threat.shard_anchors:
            raise UsageError("--exact_eval: expected all anchors on each process; leave out --shard_anchors")
        for flag in ("certify", "exact_eval"):
            if getattr(testing, flag) and testing.N_adv_eval and self.precision.tf32:
                raise UsageError(f"--{flag}: expected a network in float32, which proofs describe; leave out --tf32")
        forms_of(testing.then_project)  # raises UsageError for an unknown one
        check_distances("then_project_distances", testing.then_project_distances)
        if testing.split == "validation":
            self._check_validation()

    def _check_validation(self) -> None:
        """Raise UsageError if the model was trained on other images than the flags describe.

        The held-out images are recomputed from the training images; computed from other images, they would include some
        that the model was trained on.
        """
        projected = self.testing.adv_eval and "pd_s" in forms_of(self.testing.then_project)
        if projected or (self.testing.N_adv_eval and self.testing.segmented):
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
    def has_certified_training(self) -> bool | None:
        """True if the model under test was trained for certificates; None of weights from elsewhere."""
        if isinstance(self.train, StoredRun):
            return bool(self.train.content["hashed"].get("training", {}).get("certified_train"))
        return self.train.training.certified_train if isinstance(self.train, TrainDesc) else None

    @property
    def model_name(self) -> str:
        """The canonical name of the architecture under test."""
        return self.model.model_name

    @property
    def name(self) -> str:
        return self.train.name + ("" if self.testing.split == "test" else f"_{self.testing.split}")

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        return summary.of_result(result)

    @classmethod
    def headline(cls, result: dict[str, Any]) -> dict[str, str]:
        return summary.headline(result)
