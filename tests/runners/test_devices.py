"""The record of a run's device, and of its arithmetic there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from foundations.arithmetic import Settings, describe_arithmetic
from runners.train.runner import Train
from tests.conftest import TINY, Command


def command(root: Command, runner: str, *words: str) -> int:
    return main([runner, *TINY, *words, "--device=cpu", f"--root_dir={root.root}"])


def read(directory: Path, name: str) -> dict[str, Any]:
    return json.loads((directory / name).read_text())


def test_a_run_that_goes_on_on_another_device_says_so(digits_root: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """The finished run of the fixture, as if a GPU had made its checkpoints and then been taken away."""
    directory = digits_root.where("train", *TINY)
    (directory / "result.json").unlink()
    hparams = read(directory, "hparams.json")
    (directory / "hparams.json").write_text(json.dumps(hparams | {"devices": ["NVIDIA H100"]}))
    assert command(digits_root, "train") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "H100" in line]
    assert len(told) == 1 and told[0].startswith("note: going on on cpu with what was begun on NVIDIA H100: last bits")
    assert read(directory, "result.json")["environment"]["devices"] == ["NVIDIA H100", "cpu"]
    assert read(directory, "hparams.json") == hparams | {"devices": ["NVIDIA H100", "cpu"]}


@pytest.mark.parametrize("devices", [["cpu"], None, 7])
def test_a_run_that_goes_on_on_the_same_device_or_an_unknown_one_says_nothing(
    devices: Any, digits_root: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = digits_root.where("train", *TINY)
    (directory / "result.json").unlink()
    (directory / "hparams.json").write_text(json.dumps(read(directory, "hparams.json") | {"devices": devices}))
    assert command(digits_root, "train") == 0
    assert "begun on" not in capsys.readouterr().err
    assert read(directory, "result.json")["environment"]["devices"] == ["cpu"]


def test_a_result_names_device_and_precision_and_a_run_begun_anew_has_one_device(
    digits_root: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--train_replicate=2", "--training_steps=1it"]
    directory = digits_root.where("train", *TINY, *words)
    directory.mkdir(parents=True)
    (directory / "hparams.json").write_text(json.dumps({"devices": ["NVIDIA H100"]}))
    assert command(digits_root, "train", *words) == 0
    assert "H100" not in capsys.readouterr().err
    expected = {"device": "cpu", "gpu": None, "precision": "float32", "deterministic": True, "devices": ["cpu"]}
    assert expected.items() <= read(directory, "result.json")["environment"].items()


@pytest.mark.parametrize("tf32", [False, True])
def test_networks_compute_in_tf32_where_it_is_asked_for(
    tf32: bool, digits_root: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings that a GPU would work by during a run; on the CPU the flag changes nothing, which is said."""
    seen, words = [], ["--training_steps=2it", *(["--tf32"] if tf32 else [])]
    run = Train.run
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(Train, "run", lambda self: seen.append(describe_arithmetic("cuda:0")) or run(self))
    before = Settings.in_force()
    assert command(digits_root, "train", *words) == 0
    assert seen == [{"precision": "tf32" if tf32 else "float32", "deterministic": True}]
    assert Settings.in_force() == before
    assert ("note: --tf32 changes nothing on cpu" in capsys.readouterr().err) == tf32
    assert read(digits_root.where("train", *TINY, *words), "result.json")["environment"]["precision"] == "float32"
