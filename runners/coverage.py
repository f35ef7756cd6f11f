"""Thresholds by coverage: the evaluate_threat run that has them, and the forms of the threat that it measures.

Does not import torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from foundations.errors import UsageError
from foundations.hparams import TrainingHparams
from foundations.input_hparams import DatasetHparams, ThreatHparams
from foundations.lazy import load_object
from foundations.testing_hparams import TestingHparams
from runners.train.defaults import named_defaults
from threat_specification.registry import TANGENTS


@dataclass(frozen=True)
class Form:
    """A form of PD, as the flags of test or train give it.

    masks   source of masks and norm of the segmented form, or "" and ""
    """

    weighted: bool
    masks: tuple[str, str]
    tangents: str
    tangent_weight: float

    @classmethod
    def of_test(cls, testing: TestingHparams) -> Form:
        if not testing.N_adv_eval:
            return PLAIN
        masks = (testing.mask_source, testing.segmented_norm) if testing.segmented else ("", "")
        return cls(testing.weighted, masks, testing.tangents, testing.tangent_weight)

    @classmethod
    def of_training(cls, training: TrainingHparams) -> Form:
        if not training.N_adv_train:
            return PLAIN
        segmented = training.N_train_segmented
        masks = (training.N_train_mask_source, training.N_train_segmented_norm) if segmented else ("", "")
        return cls(training.N_train_weighted, masks, training.N_train_tangents, training.N_train_tangent_weight)

    @property
    def name(self) -> str:
        """Its name in results."""
        letters = self.weighted * "W" + bool(self.masks[0]) * "S" + bool(self.tangents) * "T"
        return f"PD-{letters}" if letters else "PD"

    def check(self, flag: str) -> None:
        """Raise UsageError if evaluate_threat does not measure this form, so that no threshold is known for it."""
        if self.weighted + bool(self.masks[0]) + bool(self.tangents) > 1:
            raise UsageError(
                f"--{flag}: evaluate_threat measures each form alone, not two together; give the threshold"
            )
        usual = TestingHparams.__dataclass_fields__["tangent_weight"].default
        if self.tangents and (self.tangents, self.tangent_weight) != (",".join(TANGENTS), usual):
            raise UsageError(
                f"--{flag}: evaluate_threat measures all tangents with weight {usual:g}; give the threshold for "
                f"{self.tangents} with {self.tangent_weight:g}"
            )


PLAIN = Form(False, ("", ""), "", 0.1)


def coverage_run(values: dict[str, Any], form: Form) -> Any:
    """The description of the evaluate_threat run that has thresholds for this form, with the flags of a command."""
    kept = {field.name for group in (DatasetHparams, ThreatHparams) for field in dataclasses.fields(group)}
    # The radii and what people see change nothing here; with those of the data set, the command that makes the run need
    # not give them.
    kept |= {"seed", "threat_replicate", "adversarial_Linf", "adversarial_L2", "human"}
    chosen = {name: value for name, value in (named_defaults(values) | values).items() if name in kept}
    if not form.weighted:
        chosen["class_weights"] = ""
    if form.masks[0]:
        chosen |= {"threat_masks": form.masks[0], "threat_segmented_norm": form.masks[1]}
    return load_object("runners.evaluate_threat.desc:EvaluateThreatDesc").from_flags(chosen)
