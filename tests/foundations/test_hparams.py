from __future__ import annotations

import dataclasses
import math

import pytest

from foundations.errors import UsageError
from foundations.hparam_fields import format_value
from foundations.hparams import AugmentationHparams, TrainingHparams
from foundations.input_hparams import DatasetHparams, ModelHparams, ThreatHparams
from foundations.testing_hparams import TestingHparams
from runners.evaluate_threat.desc import PerturbationHparams

GROUPS = [
    AugmentationHparams,
    DatasetHparams,
    ModelHparams,
    PerturbationHparams,
    TestingHparams,
    ThreatHparams,
    TrainingHparams,
]


@pytest.mark.parametrize("group", GROUPS)
def test_every_field_has_help_and_groups_are_frozen(group: type) -> None:
    made = group()
    for field in dataclasses.fields(group):
        assert field.metadata["help"].endswith(".")
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, field.name, None)


def test_no_two_groups_share_a_flag() -> None:
    names = [field.name for group in GROUPS for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("group", GROUPS)
def test_every_float_refuses_nan_and_infinity(group: type) -> None:
    for field in dataclasses.fields(group):
        if isinstance(field.default, float):
            for value in (math.nan, math.inf, -math.inf):
                with pytest.raises(UsageError, match=rf"--{field.name}: expected"):
                    group(**{field.name: value})


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        (TrainingHparams, "lr", 0.0),
        (TrainingHparams, "lr", "0.1"),
        (TrainingHparams, "batch_size", 0),
        (TrainingHparams, "batch_size", 1.5),
        (TrainingHparams, "batch_size", True),
        (TrainingHparams, "training_steps", "10"),
        (TrainingHparams, "training_steps", "-1ep"),
        (TrainingHparams, "milestone_steps", "80ep,x"),
        (TrainingHparams, "adv_loss", "l1"),
        (TrainingHparams, "N_adv_train_threshold", -0.1),
        (TrainingHparams, "adv_clean_weight", 1.1),
        (ThreatHparams, "num_chunks", False),
        (ThreatHparams, "num_chunks", 0),
        (ThreatHparams, "per_label", 0),
        (TestingHparams, "N_attack_iter", 0),
        (PerturbationHparams, "severities", (1.0, 6.0)),
    ],
)
def test_unfit_values_are_named(group: type, name: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"--{name}: expected .+, got"):
        group(**{name: value})


def test_a_flag_of_two_names_is_told_by_both() -> None:
    """An error of --mask_source spoke of --threat_masks alone."""
    with pytest.raises(UsageError, match=r"^--num_images/--num_examples: expected a number in \[1, inf\), got 0"):
        PerturbationHparams(num_images=0)
    with pytest.raises(UsageError, match=r"^--threat_masks/--mask_source: cannot read /no/such: No such file"):
        PerturbationHparams(threat_masks="file:/no/such").hashed()


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(UsageError, match="nesterov"):
        TrainingHparams(nesterov=True, momentum=0)


def test_whole_numbers_become_floats_so_that_hashes_agree() -> None:
    assert TrainingHparams(lr=1).hashed() == TrainingHparams(lr=1.0).hashed()
    assert repr(TrainingHparams(lr=1).lr) == "1.0"


@pytest.mark.parametrize(
    ("value", "text"),
    [(8 / 255, "8/255"), (0.1, "0.1"), (1.0, "1"), (0.2, "0.2"), (True, "True"), ((0.1, 8 / 255), "0.1,8/255")],
)
def test_values_are_shown_as_people_write_them(value: object, text: str) -> None:
    assert format_value(value) == text
