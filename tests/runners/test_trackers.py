"""Trackers are told what metrics.jsonl says, and can neither change a run nor end it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import random
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from cli.main import main
from foundations.environment import Environment
from foundations.run_directory import RunDirectory
from foundations.signals import Interrupted
from runners.trackers import TRACKERS, TrackedRun, Tracker, Trackers
from tests.conftest import Command
from training.random_states import seed_everything

WORDS = ["--dataset_name=digits", "--model_name=conv", "--training_steps=3ep", "--batch_size=256"]

# Packages of the same interface, as far as it is used: they write down what they are told.
SPIES = {
    "wandb": """
        class Settings(dict): pass
        class Summary:
            def update(self, figures): tell(summary=figures)
        class Run:
            summary = Summary()
            def log(self, figures, step): tell(step=step, figures=figures)
            def finish(self, exit_code): tell(finished=exit_code == 0)
        def init(project, group, dir, job_type, name, id, resume, config, settings):
            assert (project, resume, group) == ("nonisotropic", "allow", "digits") and len(id) == 16
            tell(name=name, key=id, flags=config)
            return Run()
    """,
    "trackio": """
        def init(project, name, group, config, resume, embed):
            assert (project, resume, group, embed) == ("nonisotropic", "allow", "digits", False)
            tell(name=name, key=name, flags=config)
        def log(figures, step): tell(step=step, figures=figures)
        def finish(): tell(finished=True)
    """,
    "mlflow": """
        class entities:
            class Param:
                def __init__(self, key, value): self.key, self.value = key, value
            class Metric:
                def __init__(self, key, value, timestamp, step): self.key, self.value, self.step = key, value, step
        class Experiment: experiment_id = "7"
        class Info: run_id = "run 9"
        class Run: info = Info
        class MlflowClient:
            def __init__(self, uri): assert uri.startswith("sqlite:////") and uri.endswith("/trackers/mlflow.db")
            def get_experiment_by_name(self, name): return None
            def create_experiment(self, name, artifact_location): return "7"
            def create_run(self, number, run_name, tags):
                tell(name=run_name, key="run 9")
                return Run
            def update_run(self, key, status): tell(key=key, status=status)
            def set_terminated(self, key, status): tell(finished=status == "FINISHED")
            def log_batch(self, key, metrics=(), params=()):
                assert len(params) <= 100
                if params: tell(flags={each.key: each.value for each in params})
                if metrics: tell(step=metrics[0].step, figures={each.key: each.value for each in metrics})
    """,
}


def spy(name: str, folder: Path) -> Path:
    """Write a package of a tracker's interface into a folder; returns the file that it writes."""
    told = folder / f"{name}.jsonl"
    lines = "\n".join(line[8:] for line in SPIES[name].split("\n"))
    begin = "import json\ndef tell(**told):\n"
    begin += f"    with open({str(told)!r}, 'a') as file: print(json.dumps(told), file=file)\n"
    (folder / f"{name}.py").write_text(begin + lines)
    return told


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def train(root: Path, *words: str) -> int:
    return main(["train", *WORDS, *words, f"--root_dir={root}", "--device=cpu"])


def directory(root: Path) -> Path:
    (found,) = (root / "runs/digits/train").glob("*/replicate_1")
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the run that nobody tracks."""
    root = tmp_path_factory.mktemp("plain")
    assert train(root, "--quiet") == 0
    return directory(root)


def assert_same(made: Path, plain: Path) -> None:
    assert made.relative_to(made.parents[4]) == plain.relative_to(plain.parents[4])  # not in the hash
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (made / name).read_bytes() == (plain / name).read_bytes()


@pytest.mark.parametrize("name", SPIES)
def test_a_tracker_is_told_the_metrics(name: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = spy(name, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for variable in ("WANDB_PROJECT", "WANDB_DIR", "WANDB_RUN_GROUP", "MLFLOW_TRACKING_URI", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert train(tmp_path, f"--tracker={name}", "--quiet") == 0
    sys.modules.pop(name)
    made = directory(tmp_path)
    assert_same(made, plain)
    entries = lines(told)
    metrics = lines(made / "metrics.jsonl")
    figures = [entry for entry in entries if "figures" in entry]
    for row, entry in zip(metrics, figures[:3], strict=True):
        kept = {key: value for key, value in row.items() if key in entry["figures"]}
        assert entry["step"] == row["step"] and entry["figures"] == kept
        assert set(row) - set(kept) <= {"step"}
    final = json.loads((made / "result.json").read_text())["final"]
    last = entries[-2].get("summary") or entries[-2]["figures"]
    assert last == {f"final/{key}": value for key, value in final.items()}
    assert entries[-1] == {"finished": True}
    (flags,) = (entry["flags"] for entry in entries if "flags" in entry)
    assert str(flags["batch_size"]) == "256" and flags["command"].startswith("python nonisotropic.py train --dataset")
    assert json.loads((made / "trackers.json").read_text()) == {name: entries[0]["key"]}


class Recorder(Tracker):
    """A tracker of these tests, which may be told to misbehave."""

    package = "json"
    told: list[Any] = []
    bad: str = ""
    error: BaseException = RuntimeError("no\nnetwork")

    def _tell(self, what: str, *words: Any) -> None:
        random.random(), numpy.random.rand(), torch.rand(1)  # noqa: NPY002
        if self.bad == what:
            raise self.error
        self.told.append((what, *words))
        print("a tracker speaks")

    def start(self, run: TrackedRun, key: str) -> str:
        self._tell("start", run.step, key)
        return key or "the key"

    def log(self, figures: dict[str, float], step: int) -> None:
        self._tell("log", step)

    def finish(self, figures: dict[str, float], is_complete: bool) -> None:
        self._tell("finish", is_complete, sorted(figures))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setitem(TRACKERS, "recorder", Recorder)
    for name, value in (("told", []), ("bad", ""), ("error", RuntimeError("no\nnetwork"))):
        monkeypatch.setattr(Recorder, name, value)
    return Recorder


FINAL = ["test_accuracy", "train_accuracy", "train_loss"]


@pytest.mark.parametrize("bad", ["", "start", "log", "finish"])
def test_a_tracker_that_fails_ends_nothing(
    bad: str, recorder: type[Recorder], plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does it change a bit of the run, nor print between its output."""
    recorder.bad = bad
    assert train(tmp_path, "--tracker=recorder") == 0
    captured = capsys.readouterr()
    assert_same(directory(tmp_path), plain)
    warnings = [line for line in captured.err.splitlines() if "warning" in line]
    assert "a tracker speaks" not in captured.out
    if bad:
        assert warnings == [
            "warning: the tracker recorder failed and is told no more; the run goes on: RuntimeError: no network"
        ]
    else:
        steps = [("log", 5), ("log", 10), ("log", 15)]
        assert recorder.told == [("start", 0, ""), *steps, ("finish", True, FINAL)] and not warnings


def test_what_it_draws_at_random_is_its_own(recorder: type[Recorder], tmp_path: Path) -> None:
    trackers = Trackers(["recorder"], None, RunDirectory(tmp_path), Environment(root_dir=tmp_path))

    def drawn() -> tuple[float, float, float]:
        return random.random(), numpy.random.rand(), float(torch.rand(1))  # noqa: NPY002

    seed_everything(3)
    expected = drawn()
    seed_everything(3)
    trackers.log({}, 1)
    assert drawn() == expected and recorder.told == [("log", 1)]


def test_it_goes_on_where_the_run_does(recorder: type[Recorder], plain: Path, tmp_path: Path) -> None:
    recorder.error, recorder.bad = Interrupted("stopped"), "finish"
    assert train(tmp_path, "--tracker=recorder", "--quiet") == 75
    (directory(tmp_path) / "checkpoints/step_000000015").rename(tmp_path / "lost")
    recorder.told, recorder.bad = [], ""
    assert train(tmp_path, "--tracker=recorder", "--quiet") == 0
    assert recorder.told == [("start", 10, "the key"), ("log", 15), ("finish", True, FINAL)]
    assert_same(directory(tmp_path), plain)


def test_one_that_comes_later_is_told_what_was_before(recorder: type[Recorder], plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain.parents[4], tmp_path, dirs_exist_ok=True)
    (directory(tmp_path) / "result.json").unlink()
    shutil.rmtree(directory(tmp_path) / "checkpoints/step_000000015")
    assert train(tmp_path, "--tracker=recorder", "--quiet") == 0
    assert recorder.told == [("start", 10, ""), ("log", 5), ("log", 10), ("log", 15), ("finish", True, FINAL)]


def test_a_run_that_ends_early_says_so(recorder: type[Recorder], tmp_path: Path) -> None:
    assert train(tmp_path, "--tracker=recorder", "--quiet", "--lr=1e30") == 1
    assert recorder.told[-1] == ("finish", False, [])


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_missing_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    for words in ([f"--tracker={name}"], ["--tensorboard"] if name == "tensorboard" else []):
        assert not words or train(tmp_path, *words) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"nonisotropic: --tracker={name} needs a package: pip install {name}\n")
    assert not list(tmp_path.rglob("hparams.json"))


def test_a_package_that_is_broken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb.py").write_text("raise OSError('half\\ninstalled')")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert train(tmp_path, "--tracker=wandb") == 1
    assert capsys.readouterr().err == "nonisotropic: --tracker=wandb: cannot import wandb: OSError: half installed\n"


@pytest.mark.parametrize("value", ["wand", "none,mlflow", "", "mlflow,"])
def test_a_name_that_is_unknown(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, f"--tracker={value}") == 2
    told = capsys.readouterr().err
    assert "--tracker: expected none, or one or more of tensorboard, wandb, mlflow, trackio with commas, got" in told


def test_the_figures_of_test(recorder: type[Recorder], plain: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(plain.parents[4], tmp_path / "root"))
    words = [*WORDS, "--standard_eval", "--adv_eval", "--adv_test_attack_type=apgd", "--num_examples=10"]
    assert main(["test", *words, "--tracker=recorder", f"--root_dir={root}", "--quiet"]) == 0
    assert recorder.told == [("start", 0, ""), ("finish", True, ["adv_accuracy", "standard_accuracy"])]


def test_of_several_processes_the_first_one_tells(command: Command, tmp_path: Path) -> None:
    told = spy("trackio", tmp_path)
    environment = {"PYTHONPATH": str(tmp_path)}
    done = command("train", *WORDS, "--tracker=trackio", torchrun=2, environment=environment)
    assert done.returncode == 0, done.stderr
    assert [entry["step"] for entry in lines(told) if "step" in entry] == [5, 10, 15, 15]
    assert sum("key" in entry for entry in lines(told)) == 1


@pytest.mark.parametrize("name", SPIES)
def test_the_package_itself(name: str, command: Command, plain: Path, tmp_path: Path) -> None:
    """The real package, on machines that have it; nothing leaves the machine."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    local = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "MLFLOW_TRACKING_URI": ""}
    done = command("train", *WORDS, f"--tracker={name}", environment=local)
    assert done.returncode == 0 and "warning: the tracker" not in done.stderr, done.stderr
    assert_same(directory(tmp_path), plain)
    assert found_in(name, json.loads((directory(tmp_path) / "trackers.json").read_text())[name], tmp_path) == [
        (row["step"], row["test_accuracy"]) for row in lines(directory(tmp_path) / "metrics.jsonl")
    ]


def found_in(name: str, key: str, root: Path) -> list[tuple[int, float]]:
    """Step and test accuracy, as a tool's store on this machine has them."""
    metric = "test_accuracy"
    if name == "mlflow":
        query = "select step, value from metrics where run_uuid = ? and key = ? order by step"
        with contextlib.closing(sqlite3.connect(root / "trackers/mlflow.db")) as store:
            return store.execute(query, [key, metric]).fetchall()
    if name == "trackio":
        with contextlib.closing(sqlite3.connect(root / "trackio/nonisotropic.db")) as store:
            rows = store.execute("select step, metrics from metrics where run_name = ?", [key]).fetchall()
        told = [(step, json.loads(metrics)) for step, metrics in rows]
        return [(step, metrics[metric]) for step, metrics in told if metric in metrics]
    (file,) = root.glob(f"trackers/wandb/offline-run-*-{key}/run-{key}.wandb")
    content = file.read_bytes()  # its records are kept as they were sent, numbers as JSON
    told = [json.loads(line) for line in (directory(root) / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row[metric]) for row in told if repr(row[metric]).encode() in content]
