"""The rules of the hash (DESIGN: all that can change a result, defaults included, and nothing else)."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from foundations.desc import StoredRun, derive_seed
from foundations.errors import UsageError
from foundations.hparam_fields import Hparams
from foundations.hparams import AugmentationHparams, TrainingHparams
from foundations.input_hparams import PrecisionHparams, ThreatHparams
from foundations.testing_hparams import TestingHparams
from runners.compute_threat.desc import ThreatDesc
from runners.multi.desc import MultiTestDesc, MultiTrainDesc
from runners.test import desc as described
from runners.test.desc import TestDesc
from runners.train.desc import TrainDesc

NAMED: dict[str, Any] = {"dataset_name": "mnist_5k", "model_name": "lenet"}


def other(field: dataclasses.Field) -> Any:
    """A fit value that is not the default."""
    special = {
        "selection": "random",
        "projection": "scale",
        "training_steps": "7ep",
        "milestone_steps": "3ep",
        "warmup_steps": "2ep",
        "lr_schedule": "milestones",
        "adv_train_attack_norm": "L2",
        "adv_test_attack_norm": "L2",
        "adv_test_attack_type": "apgd",
        "num_chunks": 3,
        "mask_source": "grabcut",
        "N_thresholds": (0.05,),
        "N_radii": (0.2,),
        "attacks": "pgd",
        "background": "free",
        "optimizer": "adamw",
        "precision": "bf16",
        "select": "best",
        "adv_loss": "trades",
        "N_adv_train_projection": "scale",
        "N_aug_projection": "exact",
        "N_adv_train_step_schedule": "linear",
        "split": "validation",
        "adv_start": "last",
        "N_train_mask_source": "grabcut",
        "N_train_background": "free",
        "segmented_norm": "masked",
        "N_train_segmented_norm": "masked",
        "class_weights_form": "similarity",
        "selection_space": "raw",
        "class_weights": __file__,
        "tangents": "affine",
        "N_train_tangents": "affine",
        "then_project": "pd",
        "then_project_method": "scale",
        "then_project_distances": "lpips",
        "safe_moves": "quick:2",
        "N_train_safe_moves": "quick:2",
        "corruption_suites": "C-bar",
        "corruption_severities": (1.0, 3.0),
        "corruption_eval_files": __file__,
        "corruption_baseline": "somewhere",
        "foreign_attacks": f"foolbox_pgd@{__file__}",
        "audit_attacks": "apgd_pm",
        "protocol": "pd-bench-1",
    }
    if field.name in special:
        return special[field.name]
    if isinstance(field.default, bool):
        return not field.default
    return field.default + 1 if isinstance(field.default, int) else field.default / 2 + 0.01


def ancestors(group: type[Hparams], field: dataclasses.Field) -> dict[str, Any]:
    """Settings of the same group that switch a field on."""
    when = field.metadata["when"].split("|")[0]
    if not when:
        return {}
    name, _, value = when.partition("=")
    above = group.__dataclass_fields__[name]
    return {name: value or (True if above.default is False else other(above))} | ancestors(group, above)


def fields_of(*groups: type[Hparams]) -> list[Any]:
    return [
        pytest.param(group, field, id=field.name)
        for group in groups
        for field in dataclasses.fields(group)
        if field.name != "class_weights"  # a file: see below
    ]


@pytest.mark.parametrize(
    ("group", "field"), fields_of(TrainingHparams, AugmentationHparams, ThreatHparams, PrecisionHparams)
)
def test_each_setting_of_a_training_run_changes_its_hash_when_it_can_change_the_result(
    group: type[Hparams], field: dataclasses.Field
) -> None:
    base = NAMED | {"N_aug": group is ThreatHparams} | ancestors(group, field)
    weighted = {"N_adv_train": True, "N_train_weighted": True, "class_weights": __file__}
    base |= {
        "select": {"validation_fraction": 0.1},
        "N_train_weighted": {"class_weights": __file__},
        "class_weights_form": weighted,
        "class_weights_calibrate": weighted,
    }.get(field.name, {})
    changed = TrainDesc.from_flags(base | {field.name: other(field)})
    same = TrainDesc.from_flags(base).hash == changed.hash
    assert same == (not field.metadata["hashed"])


@pytest.mark.parametrize(("group", "field"), fields_of(TrainingHparams, AugmentationHparams, ThreatHparams))
def test_a_setting_that_is_switched_off_changes_nothing(group: type[Hparams], field: dataclasses.Field) -> None:
    if field.metadata["when"] or group is ThreatHparams:
        base = NAMED | {"lr_schedule": "cosine", "optimizer": "adamw"}
        assert TrainDesc.from_flags(base).hash == TrainDesc.from_flags(base | {field.name: other(field)}).hash


@pytest.mark.parametrize(("group", "field"), fields_of(TestingHparams))
def test_each_setting_of_an_evaluation_changes_its_hash(group: type[Hparams], field: dataclasses.Field) -> None:
    base = NAMED | {"adv_eval": field.name == "standard_eval", "standard_eval": field.name != "standard_eval"}
    base |= ancestors(group, field)
    if field.name == "weighted":
        base |= {"class_weights": __file__}
    same = TestDesc.from_flags(base).hash == TestDesc.from_flags(base | {field.name: other(field)}).hash
    assert same == (not field.metadata["hashed"])


def test_hash_is_of_canonical_json_with_defaults() -> None:
    desc = TrainDesc.from_flags(NAMED)
    text = json.dumps(desc.hashed(), sort_keys=True, separators=(",", ":"))
    assert desc.hash == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert desc.hashed()["training"]["momentum"] == 0.9


def test_the_hashes_of_published_runs_stay_what_they_are() -> None:
    """A change here means that nobody finds their old runs: say so in the changelog."""
    assert ThreatDesc.from_flags(NAMED).hash == "2e513639579a"


def test_a_figure_of_older_attacks_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure from before the attacks changed is not given for today's; clean figures stay."""
    attacked, clean = NAMED | {"N_adv_eval": True}, NAMED | {"standard_eval": True}
    before = TestDesc.from_flags(attacked).hash, TestDesc.from_flags(clean).hash
    monkeypatch.setattr(described, "ENSEMBLE", 1)
    now = TestDesc.from_flags(attacked).hash, TestDesc.from_flags(clean).hash
    assert now[0] != before[0] and now[1] == before[1]


def test_own_replicate_is_not_hashed_but_that_of_runs_below_is() -> None:
    flags = NAMED | {"N_aug": True, "standard_eval": True}
    assert TrainDesc.from_flags(flags).hash == TrainDesc.from_flags(flags | {"train_replicate": 2}).hash
    assert TrainDesc.from_flags(flags).hash != TrainDesc.from_flags(flags | {"threat_replicate": 2}).hash
    assert TestDesc.from_flags(flags).hash != TestDesc.from_flags(flags | {"train_replicate": 2}).hash
    assert TestDesc.from_flags(flags).hash == TestDesc.from_flags(flags | {"test_replicate": 2}).hash


def test_replicate_and_seed_enter_path_and_randomness() -> None:
    first, second = (TrainDesc.from_flags(NAMED | {"train_replicate": k}) for k in (1, 2))
    assert first.directory(Path()).name == "replicate_1"
    assert second.directory(Path()).name == "replicate_2"
    assert first.directory(Path()).parent == second.directory(Path()).parent
    assert len({derive_seed(seed, k, what) for seed, k, what in itertools.product((0, 1), (1, 2), "ab")}) == 8
    assert first.hash != TrainDesc.from_flags(NAMED | {"seed": 1}).hash


def test_a_training_run_without_threat_ignores_its_anchors() -> None:
    plain = TrainDesc.from_flags(NAMED)
    assert plain.hash == TrainDesc.from_flags(NAMED | {"per_label": 5, "threat_replicate": 3}).hash
    assert "anchors" not in plain.hashed()
    under = TrainDesc.from_flags(NAMED | {"N_adv_train": True})
    assert under.hashed()["anchors"] == {"hash": ThreatDesc.from_flags(NAMED).hash, "replicate": 1}


def test_tf32_enters_the_hash_of_what_networks_compute_and_of_nothing_else() -> None:
    """Unset it leaves no trace: runs made before there was the flag keep their names."""
    flags = NAMED | {"N_adv_eval": True, "train_replicate": 2}
    plain, lower = (TestDesc.from_flags(flags | more) for more in ({}, {"tf32": True}))
    assert "precision" not in plain.hashed() and "precision" not in plain.train.hashed()
    assert lower.hashed()["precision"] == {"tf32": True} and plain.hash != lower.hash
    assert lower.train == TrainDesc.from_flags(flags | {"tf32": True}) and lower.train.hash != plain.train.hash
    assert lower.anchors.hash == plain.anchors.hash
    assert "tf32" in lower.flags()


@pytest.mark.parametrize("alias", ["lenet", "mnist_lenet", "mnist_5k_lenet", "digits_lenet"])
def test_aliases_are_resolved_first(alias: str) -> None:
    assert TrainDesc.from_flags(NAMED | {"model_name": alias}) == TrainDesc.from_flags(NAMED)


@pytest.mark.parametrize("switches", list(itertools.product((False, True), repeat=4)))
def test_an_evaluation_finds_what_training_made(switches: tuple[bool, ...]) -> None:
    toggles = dict(zip(("N_aug", "mixup", "adv_train", "N_adv_train"), switches, strict=True))
    flags = NAMED | toggles | {"lr": 0.3, "N_aug_threshold": 0.2, "N_adv_train_radius": 0.25, "mixup_alpha": 0.4}
    evaluation = TestDesc.from_flags(flags | {"N_threshold": 0.05, "N_radius": 0.1, "N_adv_eval": True})
    assert evaluation.train.directory(Path("r")) == TrainDesc.from_flags(flags).directory(Path("r"))


def test_files_enter_by_their_content(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / name for name in ("w.csv", "copy.csv", "other.csv"))
    first.write_text("1,2\n2,1")
    copy.write_text("1,2\n2,1")
    other.write_text("1,3\n3,1")

    def anchors(weights: Path | str) -> str:
        return ThreatDesc.from_flags(NAMED | {"class_weights": str(weights)}).hash

    assert anchors(first) == anchors(copy) != anchors(other)
    assert len({anchors(first), anchors(f"tree:{first}"), anchors("")}) == 3
    assert str(tmp_path) not in json.dumps(ThreatDesc.from_flags(NAMED | {"class_weights": str(first)}).stored())
    with pytest.raises(UsageError, match=r"--class_weights: cannot read .*missing.csv"):
        anchors(tmp_path / "missing.csv")

    def masks(source: str) -> str:
        flags = NAMED | {"N_adv_eval": True, "segmented": True, "mask_source": source}
        return TestDesc.from_flags(flags).hash

    assert masks(f"file:{first}") == masks(f"file:{copy}") != masks(f"file:{other}")
    assert masks(f"sam:vit_b@{first}") == masks(f"sam:vit_b@{copy}") != masks(f"sam:{first}")


def test_weights_belong_to_the_weighted_form_alone() -> None:
    flags = NAMED | {"N_adv_eval": True, "N_aug": True}
    plain, with_file = (TestDesc.from_flags(flags | more) for more in ({}, {"class_weights": __file__}))
    assert plain.hash == with_file.hash
    weighted = TestDesc.from_flags(flags | {"class_weights": __file__, "weighted": True})
    assert weighted.anchors.hash == ThreatDesc.from_flags(NAMED | {"class_weights": __file__}).hash
    assert weighted.train.hash == plain.train.hash
    with pytest.raises(UsageError, match="--weighted: expected --class_weights=FILE"):
        TestDesc.from_flags(flags | {"weighted": True})


def test_anchors_of_evaluation_may_be_others_than_those_of_training() -> None:
    flags = NAMED | {"N_adv_eval": True, "N_aug": True}
    other = TestDesc.from_flags(flags | {"threat_replicate": 2, "train_threat_replicate": 1})
    assert other.anchors.replicate == 2
    assert other.train.hash == TrainDesc.from_flags(flags).hash
    assert other.hash != TestDesc.from_flags(flags).hash


def test_names_of_tangents_give_one_hash_in_any_order() -> None:
    base = NAMED | {"N_adv_eval": True}
    hashes = {
        TestDesc.from_flags(base | {"tangents": named}).hash
        for named in ("all", "brightness,contrast,affine,blur", "blur,affine,,contrast,brightness,blur")
    }
    assert len(hashes) == 1
    assert TestDesc.from_flags(base | {"tangents": "blur"}).hash not in hashes | {TestDesc.from_flags(base).hash}


def test_a_threshold_that_coverage_replaces_changes_nothing() -> None:
    base = NAMED | {"N_adv_eval": True, "N_coverage": 0.9}
    assert TestDesc.from_flags(base).hash == TestDesc.from_flags(base | {"N_threshold": 0.3}).hash
    assert TestDesc.from_flags(base).hash != TestDesc.from_flags(base | {"N_coverage": 0.8}).hash
    assert TestDesc.from_flags(base).hash != TestDesc.from_flags(base | {"per_label": 20}).hash


def test_a_directory_names_data_set_runner_run_and_replicate() -> None:
    desc = TrainDesc.from_flags(NAMED | {"mixup": True, "adv_train": True})
    assert desc.directory(Path("root")) == Path(
        f"root/runs/mnist_5k/train/lenet_mixup+adv_train_{desc.hash}/replicate_1"
    )


@pytest.mark.parametrize(("split", "name"), [("test", "lenet+adv_train"), ("validation", "lenet_validation+adv_train")])
def test_several_evaluations_are_named_by_the_images(split: str, name: str) -> None:
    flags = NAMED | {"toggle_adv_train": True, "standard_eval": True, "validation_fraction": 0.1, "split": split}
    assert MultiTestDesc.from_flags(flags).name == name


def test_multi_runs_are_the_product_of_their_toggles() -> None:
    desc = MultiTrainDesc.from_flags(NAMED | {"toggle_N_aug": True, "toggle_adv_train": True})
    assert [child.variant for child in desc.children] == ["standard", "adv_train", "N_aug", "N_aug+adv_train"]
    assert desc.hash != MultiTrainDesc.from_flags(NAMED | {"toggle_N_aug": True}).hash


def stored(desc: TrainDesc, path: Path) -> Path:
    path.mkdir()
    (path / "hparams.json").write_text(json.dumps(desc.stored()))
    return path


def test_a_model_named_by_its_directory_is_the_same_run(tmp_path: Path) -> None:
    flags = NAMED | {"lr": 0.3, "standard_eval": True}
    directory = stored(TrainDesc.from_flags(flags), tmp_path / "run")
    by_directory = TestDesc.from_flags({"train_dir": str(directory), "standard_eval": True})
    assert by_directory.hash == TestDesc.from_flags(flags).hash
    assert by_directory.model_name == "lenet"


def test_edited_hparams_are_refused(tmp_path: Path) -> None:
    file = stored(TrainDesc.from_flags(NAMED), tmp_path / "run") / "hparams.json"
    file.write_text(file.read_text().replace('"lr": 0.1', '"lr": 0.2'))
    with pytest.raises(UsageError, match="was edited"):
        StoredRun.read(tmp_path / "run", tmp_path, "train")
    with pytest.raises(UsageError, match=r"expected a run's directory \(with hparams.json\)"):
        StoredRun.read(tmp_path, tmp_path, "train")
    with pytest.raises(UsageError, match="trained on mnist_5k, not on digits"):
        TestDesc.from_flags(
            {"train_dir": str(stored(TrainDesc.from_flags(NAMED), tmp_path / "b")), "dataset_name": "digits"}
        )
