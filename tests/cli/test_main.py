"""The command line in one process: listings, flags, mistakes. Exit codes 0, 1, 2; a line or two on stderr."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cli.flags import without_effect
from cli.main import first_look, main, runner_parser
from cli.runner_registry import RUNNERS, desc_class
from cli.shared_args import ToggleHparams
from foundations.lazy import load_object
from runners.base import Runner
from runners.train.desc import ADDED
from threat_specification.registry import THREATS

NAMED = ["--dataset_name=mnist_5k", "--model_name=mnist_lenet"]


def where(capsys: pytest.CaptureFixture[str], *words: str) -> Path:
    assert main([*words, "--display_output_location"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    return Path(captured.out.strip())


def test_registries_agree() -> None:
    assert [f"toggle_{name}" for name in ADDED] == [field.name for field in dataclasses.fields(ToggleHparams)]
    for name in RUNNERS:
        described = desc_class(name)
        assert described.runner == name
        assert described.purpose
        assert issubclass(load_object(described.runner_class), Runner)


@pytest.mark.parametrize("words", [[], ["tran"], ["--dataset_name=digits"]])
def test_no_runner_or_an_unknown_one_lists_all(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err
    for name in RUNNERS:
        assert name in message
        assert (desc_class(name).purpose in message) == (words == [])
    assert message.count("\n") == 1 or not words
    assert ("did you mean 'train'?" in message) == (words == ["tran"])


@pytest.mark.parametrize("runner", RUNNERS)
def test_help_of_every_runner_shows_every_flag(runner: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([runner, "--dataset_name=mnist_5k", "--model_name=conv", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for group in desc_class(runner).hparams_classes():
        for field in dataclasses.fields(group):
            assert f"--{field.name}" in shown


def test_help_shows_what_may_stand_for_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["test", "--help"])
    shown = capsys.readouterr().out
    for words in (
        "--split test|validation",
        "--data_dir PATH",
        "--lr X",
        "--attacks NAME,NAME",
        "--tangents [NAME,NAME",
    ):
        assert f"  {words}" in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "--dataset_nam=digits"], "unknown argument --dataset_nam (did you mean '--dataset_name'?)"),
        (["train", "--dataset-name=digits"], "did you mean '--dataset_name'?"),
        (["train", *NAMED, "extra"], "unknown argument extra"),
        (
            ["train", "--dataset_name=mnist5k", "--model_name=lenet"],
            "unknown data set 'mnist5k' (did you mean 'mnist_5k'?)",
        ),
        (["multi_test", "--dataset_name=digits", "--model_name=conv,lenet_8"], "--model_name: expected one model, got"),
        (["train", "--dataset_name=mnist_5k", "--model_name=lenett"], "unknown model 'lenett' (did you mean 'lenet'?)"),
        (["train", "--dataset_name=mnist_5k", "--model_name=resnet_9"], "expected a depth of 6n+2"),
        (["train", "--dataset_name=digits", "--model_name=lenet"], "takes images from 12x12 up, got 8x8"),
        (["train", "--model_name=lenet"], "--dataset_name is required"),
        (["train", "--dataset_name=mnist_5k"], "--model_name is required"),
        (["train", *NAMED, "--lr=fast"], "--lr: expected a number such as 0.03 or 8/255, got 'fast'"),
        (["train", *NAMED, "--lr=1/0"], "--lr: expected a number such as 0.03 or 8/255, got '1/0'"),
        (["train", *NAMED, "--lr=nan"], "--lr: expected a finite number, got nan"),
        (["train", *NAMED, "--lr=-1"], "--lr: expected a number in (0, inf), got -1"),
        (["train", *NAMED, "--lr="], "--lr: expected a number"),
        (["train", *NAMED, "--lr"], "--lr: expected one argument"),
        (["train", *NAMED, "--batch_size=1.5"], "--batch_size: expected a whole number, got '1.5'"),
        (["train", *NAMED, "--N_aug=perhaps"], "--N_aug: expected true or false, or the flag alone, got 'perhaps'"),
        (["train", *NAMED, "--training_steps=10"], "--training_steps: expected a number of epochs or iterations"),
        (["train", *NAMED, "--train_replicate=0"], "--train_replicate: expected a number in [1, inf), got 0"),
        (["train", *NAMED, "--device=gpu"], "--device: expected auto, cpu, cuda"),
        (["train", *NAMED, "--standard_eval"], "unknown argument --standard_eval"),
        (["train", *NAMED, "--cutout=28"], "--cutout: expected fewer pixels than the 28 of an image's side, got 28"),
        (["train", *NAMED, "--random_crop=100"], "--random_crop: expected fewer pixels than the 28 of an image's side"),
        (["test", *NAMED], "nothing to do; add --standard_eval, --adv_eval, --N_adv_eval or --corruption_eval"),
        (["test", *NAMED, "--standard_eval", "--num_examples=-1"], "--num_examples: expected a number in [0, inf)"),
        (["test", "--train_dir=/nowhere", "--standard_eval"], "expected a run's directory"),
        (["compute_threat", "--dataset_name=digits", "--num_chunks=0"], "--num_chunks: expected True or a number"),
        (
            ["compute_threat", "--dataset_name=digits", "--selection=best"],
            "--selection: expected one of greedy_subsets",
        ),
        (
            ["compute_threat", "--dataset_name=digits", "--selection_space=lab"],
            "--selection_space: expected one of normalised, raw, got lab",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*words, f"--root_dir={tmp_path}/root"]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "root").exists()


def test_debug_shows_where(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset_name"):
        main(["train", "--debug"])


@pytest.mark.parametrize(
    "words",
    [
        ["compute_threat", "--dataset_name=mnist_5k", "--threat_replicate=1"],
        ["train", *NAMED],
        ["train", *NAMED, "--N_aug", "--mixup", "--adv_train", "--N_adv_train"],
        ["multi_train", *NAMED, "--toggle_N_aug", "--toggle_adv_train", "--toggle_N_adv_train"],
        ["test", *NAMED, "--standard_eval", "--adv_eval", "--N_adv_eval"],
        ["multi_test", *NAMED, "--toggle_N_aug", "--toggle_N_adv_train", "--standard_eval"],
        ["report", "--dataset_name=mnist_5k"],
    ],
)
def test_display_output_location_prints_the_directory_and_creates_nothing(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = where(capsys, *words, f"--root_dir={tmp_path}/root")
    assert shown.is_relative_to(tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_threat_of_the_table_can_be_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One entry of the table, and flags of training and evaluation take it."""
    monkeypatch.setitem(THREATS, "box", THREATS["Linf"])
    small = ["--dataset_name=digits", "--model_name=conv", "--training_steps=1it", "--quiet", f"--root_dir={tmp_path}"]
    train = [*small, "--adv_train", "--adv_train_attack_norm=box"]
    assert main(["train", *train]) == 2
    assert "--adv_train_attack_power: expected the radius of the box ball" in capsys.readouterr().err
    train.append("--adv_train_attack_power=0.1")
    test = ["--adv_eval", "--adv_test_attack_norm=box", "--adv_test_attack_power=0.1", "--num_examples=10"]
    assert main(["train", *train]) == main(["test", *train, *test, "--adv_test_attack_type=pgd"]) == 0
    assert "Linf <= 0.1" in capsys.readouterr().out
    assert main(["test", *train, *test]) == 2
    assert "AutoAttack knows Linf and L2, got box" in capsys.readouterr().err
    assert main(["train", *small, "--adv_train", "--adv_train_attack_norm=PD"]) == 2
    assert "--adv_train_attack_norm: expected one of Linf, L2, box, got PD" in capsys.readouterr().err


def test_flags_that_mean_the_same_give_the_same_run(capsys: pytest.CaptureFixture[str]) -> None:
    train = where(capsys, "train", *NAMED, "--N_adv_train", "--N_adv_train_radius=0.3")
    for words in (
        ["--N_adv_train=true", "--N_adv_train_radius=3/10"],
        ["--N_adv_train", "True", "--N_adv_train_radius", "0.30"],
        ["--N_adv_train", "--quiet", "--num_workers=3", "--device=cpu", "--data_dir=x", "--num_chunks=7"],
    ):
        assert where(capsys, "train", *NAMED, *words) == train
    with_alias = where(capsys, "multi_train", *NAMED, "--toggle_N_adv")
    assert with_alias == where(capsys, "multi_train", *NAMED, "--toggle_N_adv_train")


def test_defaults_follow_data_set_and_model() -> None:
    words = ["--dataset_name=mnist_5k", "--model_name=resnet_8"]
    values = runner_parser("train", words).parse(words)
    assert values["N_adv_train_radius"] == 0.3
    assert values["weight_decay"] == 5e-4
    plain = runner_parser("train", []).parse([])
    assert plain["N_adv_train_radius"] == 8 / 255
    assert first_look(["--lr=3"]) == {}
    assert first_look(["--dataset_name=image_folder", "--image_size=224", "--model_name=resnet_8"])["lr_per"] == 256
    assert runner_parser("train", words).parse([*words, "--weight_decay=0"])["weight_decay"] == 0


def test_other_ranks_do_not_display_and_leave_mistakes_to_rank_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["train", *NAMED, "--display_output_location"]) == 0
    said_before_waiting = []
    monkeypatch.setattr("time.sleep", lambda seconds: said_before_waiting.append(capsys.readouterr()))
    assert main(["train", *NAMED, "--lr=x"]) == 2
    (before,) = said_before_waiting
    assert before.out == before.err == ""
    assert capsys.readouterr().err.startswith("nonisotropic [rank 1]: --lr")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "--certified_train_radius=0.1"], "--certified_train_radius (needs --certified_train)"),
        (["train", "--trades_beta=6", "--adv_train"], "--trades_beta (needs --adv_loss=trades)"),
        (["train", "--adv_train_attack_power_Linf=0.1"], "--adv_train_attack_power_Linf (needs --adv_train)"),
        (["test", "--standard_eval", "--corruption_suites=C"], "--corruption_suites (needs --corruption_eval)"),
        (["test", "--N_adv_eval", "--audit_attacks=pgd"], "--audit_attacks (needs --audit)"),
        (["test", "--standard_eval", "--segmented=false"], ""),
        (["test", "--N_adv_eval", "--segmented=false", "--data_dir=/data", "--N_radius=0.1"], ""),
        (["train", "--certified_train", "--certified_train_radius=0.1"], ""),
        (["multi_train", "--toggle_certified_train", "--certified_train_radius=0.1"], ""),
    ],
)
def test_flags_without_effect_are_told(words: list[str], told: str) -> None:
    """Whoever forgets --certified_train trained a plain model, and read no word of it."""
    runner, arguments = words[0], [*words[1:], *NAMED]
    values = runner_parser(runner, arguments).parse(arguments, False)
    assert without_effect(runner, values, arguments) == (told and f"without effect here: {told}")
