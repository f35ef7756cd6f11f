"""Thresholds that hold a share of the safe changes: measured by evaluate_threat, used by test and train."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from datasets.base import Split
from foundations.desc import Desc
from foundations.testing_hparams import TestingHparams
from runners.evaluate_threat import coverage_chart
from runners.evaluate_threat.coverage import Coverage
from runners.test.desc import TestDesc
from runners.test.inputs import Inputs
from runners.test.runner import Test
from runners.test.summary import binding
from runners.train.desc import TrainDesc
from testing.coverage import threshold_at
from testing.perturbed import Perturbation
from testing.separation import Bootstrap
from tests.conftest import TINY, Command
from tests.datasets.written import write_folders
from threat_specification import AnchorSet

ATTACK = ["--N_adv_eval", "--num_examples=20", "--attacks=apgd_ce", "--N_attack_iter=3", "--N_radius=0.3"]


@pytest.fixture(scope="module")
def measured(digits_root: Command) -> Path:
    digits_root.ok("compute_threat", "--dataset_name=digits")
    return digits_root.ok("evaluate_threat", "--dataset_name=digits")


def safe_values(measured: Path) -> dict[str, numpy.ndarray]:
    with numpy.load(measured / "coverage.npz", allow_pickle=False) as file:
        names = [name for name in file.files if name not in ("index", "group")]
        return {name: file[name][:, file["group"] == "safe"] for name in names}


def test_thresholds_hold_their_share_of_training_images_and_nearly_of_test_images(measured: Path) -> None:
    result = json.loads((measured / "result.json").read_text())
    found, values = result["coverage"]["threats"], safe_values(measured)
    assert list(found) == result["threats"] == list(values)
    assert result["coverage"]["num_training_images"] == 250 == len(values["PD"])
    with numpy.load(measured / "examples.npz", allow_pickle=False) as file:
        rows = dict(file)
    for name, levels in found.items():
        for level, told in levels.items():
            assert (values[name] <= told["threshold"] * (1 + 1e-5)).mean() >= float(level)
            for group in ("safe", "unsafe"):
                of = [c for c, row in enumerate(result["table"]) if row["group"] == group]
                share = (rows[name][:, of] <= told["threshold"] * (1 + 1e-6)).mean()
                assert told[f"{group}_held"] == pytest.approx(share, abs=2e-4)
            assert abs(told["safe_held"] - float(level)) < 0.05 or name == "Linf"
    assert found["PD-T"]["0.95"]["unsafe_held"] < found["L2"]["0.95"]["unsafe_held"]
    lines = list(csv.DictReader((measured / "coverage.csv").read_text().splitlines()))
    of_pd = {line["coverage"]: float(line["threshold"]) for line in lines if line["threat"] == "PD"}
    assert of_pd["0.95"] == pytest.approx(found["PD"]["0.95"]["threshold"], rel=1e-5)
    with numpy.load(measured / "coverage.npz", allow_pickle=False) as file:
        unsafe = file["PD"][:, file["group"] == "unsafe"]
    held = {line["coverage"]: float(line["unsafe_held_training"]) for line in lines if line["threat"] == "PD"}
    of_training = float((unsafe <= threshold_at(values["PD"], 0.95)).mean())
    assert held["0.95"] == pytest.approx(of_training, abs=1e-5) and held["0.95"] != found["PD"]["0.95"]["unsafe_held"]
    assert (measured / "coverage.png").stat().st_size > 5000


def test_the_curve_says_that_it_is_of_training_images() -> None:
    """The tables beside it are of test images."""
    values = numpy.random.default_rng(0).exponential(size=(20, 2))
    covered = Coverage(numpy.arange(20), {"PD": values}, ["safe", "unsafe"])
    measurement: Any = SimpleNamespace(coverage=covered, main=["PD"])
    figure = coverage_chart.coverage(measurement)
    assert figure is not None
    (axes,) = figure.axes
    assert "unsafe" in axes.get_ylabel() and "training images" in axes.get_ylabel()
    assert "training images" in axes.get_xlabel()
    figure.draw_without_rendering()
    box = axes.yaxis.label.get_window_extent()
    assert box.y0 >= 0 and box.y1 <= figure.bbox.height


def test_intervals_know_that_the_threshold_was_found_on_images_too() -> None:
    """Over test images alone they were as narrow as these are many: another draw of a few training images moves it."""
    generator = numpy.random.default_rng(0)
    changes = [Perturbation(name, 1, name, "C", "noise", None) for name in ("safe", "unsafe")]  # type: ignore[arg-type]
    training, test = ({"PD": generator.exponential(size=(n, 2))} for n in (100, 1000))
    covered = Coverage(numpy.arange(100), training, ["safe", "unsafe"])
    found = covered.describe(changes, test, Bootstrap.over(1000, 500, 1), seed=1)["threats"]["PD"]["0.8"]
    safe, unsafe, drawn = training["PD"][:, 0], test["PD"][:, 1], []
    for _ in range(2000):
        threshold = numpy.sort(generator.choice(safe, 100))[79]  # the smallest that holds 80 of 100
        drawn.append((generator.choice(unsafe, 1000) <= threshold).mean())
    assert (found["low"], found["high"]) == pytest.approx(numpy.quantile(drawn, [0.025, 0.975]), abs=0.03)
    assert found["high"] - found["low"] > 0.07  # 0.05 over test images alone


def test_its_images_are_no_anchors(digits_root: Command, measured: Path) -> None:
    anchors = AnchorSet.load(digits_root.where("compute_threat", "--dataset_name=digits") / "anchors.safetensors")
    assert anchors.indices is not None
    with numpy.load(measured / "coverage.npz", allow_pickle=False) as file:
        rows = set(file["index"].tolist())
    assert len(rows) == 250 and not rows & set(anchors.indices.tolist())


@pytest.mark.parametrize(("per_label", "more"), [(5, ()), (2, ("--stability",))])
def test_where_all_training_images_are_anchors_there_is_none(
    per_label: int, more: Sequence[str], command: Command, tmp_path: Path
) -> None:
    """Said before the measurement, which goes on; those of --stability are anchors too."""
    write_folders(tmp_path / "set", train=5)
    data = ["--dataset_name=image_folder", f"--data_dir={tmp_path}/set", "--image_size=16", f"--per_label={per_label}"]
    command.ok("compute_threat", *data)
    words = ["evaluate_threat", *data, "--suites=torchvision", "--severities=3", "--bootstrap=100", *more]
    done = command(*words)
    assert done.returncode == 0, done.stderr
    told = "note: no thresholds by coverage: expected training images of two classes that are no anchors, got none"
    assert done.stderr.count(told) == 1 and ("no --stability" in done.stderr) == bool(more)
    assert json.loads((command.where(*words) / "result.json").read_text())["coverage"] is None
    assert not (command.where(*words) / "coverage.npz").exists()


def test_the_radius_alone_is_attacked_beside_the_set(digits_root: Command) -> None:
    """And words say whether the threshold matters."""
    words = ["test", *TINY, *ATTACK[:-1], "--per_label=10", "--N_radius=0.15", "--N_threshold=0.001"]
    done = digits_root(*words)
    assert done.returncode == 0, done.stderr
    found = digits_root.result(*words)["N_adv"]
    (alone,) = found["references"]
    assert (alone["threshold"], alone["radius"]) == (None, 0.15) and alone["accuracy"] < found["accuracy"]
    change = found["accuracy"] - alone["accuracy"]
    assert f"at radius 0.15 the threshold of PD changes {change:.4f} of accuracy" in done.stdout
    assert "the threat binds" in done.stdout


@pytest.mark.parametrize(("form", "name"), [([], "PD"), (["--tangents"], "PD-T")])
def test_an_evaluation_takes_its_threshold(form: list[str], name: str, digits_root: Command, measured: Path) -> None:
    result = digits_root.result("test", *TINY, *ATTACK, *form, "--N_coverage=0.6")["N_adv"]
    expected = float(numpy.quantile(safe_values(measured)[name], 0.6, method="inverted_cdf"))
    assert result["norm"] == name and result["coverage"] == 0.6
    assert result["threshold"] == pytest.approx(expected, rel=1e-6)
    with numpy.load(digits_root.where("test", *TINY, *ATTACK, *form, "--N_coverage=0.6") / "examples.npz") as file:
        assert 0 < file["N_adv_threat"].max() <= expected * (1 + 2e-6)


def test_so_does_a_ball_and_training(digits_root: Command, measured: Path) -> None:
    ball = ["--adv_eval", "--adv_test_attack_norm=L2", "--adv_test_attack_type=pgd", "--num_examples=20"]
    result = digits_root.result("test", *TINY, *ball, "--N_coverage=0.3")["adv"]
    values = safe_values(measured)
    assert result["threshold"] == pytest.approx(float(numpy.quantile(values["L2"], 0.3, method="inverted_cdf")))
    done = digits_root(
        "train", *TINY, "--N_adv_train", "--N_train_tangents", "--N_train_coverage=0.4", "--training_steps=2it"
    )
    assert done.returncode == 0, done.stderr
    expected = float(numpy.quantile(values["PD-T"], 0.4, method="inverted_cdf"))
    assert f"thresholds that hold 0.4 of the safe changes: PD-T {expected:.4g}" in done.stderr


def test_what_a_radius_takes_from_a_set_is_told(digits_root: Command, measured: Path) -> None:
    """A set that should hold 95 % of the safe changes held 37 % of those of mnist_5k, without a word."""
    values = safe_values(measured)
    threshold = float(numpy.quantile(values["PD"], 0.9, method="inverted_cdf"))
    held = float(((values["PD"] <= threshold) & (values["Linf"] <= 0.1)).mean())
    assert held < 0.8
    told = digits_root("test", *TINY, *ATTACK[:-1], "--N_coverage=0.9", "--N_radius=0.1", "--test_replicate=3").stderr
    assert f"note: PD <= {threshold:.4g} within the radius 0.1 holds {held:.3g} of them\n" in told
    whole = digits_root("test", *TINY, *ATTACK[:-1], "--N_coverage=0.9", "--N_radius=1", "--test_replicate=3").stderr
    assert "thresholds that hold 0.9" in whole and "within the radius" not in whole


@pytest.mark.parametrize(
    ("background", "held"), [("frozen", "leave the background as it is"), ("free", "within --N_radius inside the mask")]
)
def test_what_a_background_takes_from_a_set_is_told(background: str, held: str) -> None:
    """With a frozen background a tenth of the safe changes was left of a set that should hold 95 %."""
    told: list[str] = []
    inputs: Any = Inputs.__new__(Inputs)
    testing = TestingHparams(N_adv_eval=True, segmented=True, N_coverage=0.9, background=background)
    inputs.desc, inputs.environment = SimpleNamespace(testing=testing, coverage=None), SimpleNamespace(log=told.append)
    assert inputs._with_thresholds() == testing
    assert "the set holds fewer safe changes, those alone that" in told[0] and held in told[0]


def test_a_run_probes_images_of_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first fifty of a folder are of one class."""
    probed: list[list[int]] = []
    told = lambda evaluation, shard, robust, *of_all: probed.append(shard.index.tolist()) or []  # noqa: E731
    monkeypatch.setattr("runners.test.runner.masking_warnings", told)
    images = Split(torch.zeros(300, 1, 2, 2, dtype=torch.uint8), torch.arange(300) // 100)
    run: Any = Test.__new__(Test)
    run.inputs = SimpleNamespace(index=torch.arange(300), testing=TestingHparams(), images=images)
    run.inputs.model, run.inputs.evaluations = nn.Identity(), {"N_adv": None}
    run.environment = SimpleNamespace(device=torch.device("cpu"), log=None)
    columns = ("correct", "broken_by", "no_answer")
    run._suspicions("N_adv", {f"N_adv_{name}": numpy.zeros(300, bool) for name in columns})
    assert probed == [list(range(0, 300, 6))]


def test_a_share_with_threshold_0_is_told_by_the_flag_that_asks_for_it(digits_root: Command, measured: Path) -> None:
    assert safe_values(measured)["PD"].min() == 0
    for flag, words in (("N_coverage", ["test", *ATTACK]), ("N_train_coverage", ["train", "--N_adv_train"])):
        done = digits_root(*words, *TINY, f"--{flag}=1e-6")
        assert done.returncode == 2 and f"--{flag}: PD is 0 for a share of 1e-06" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--per_label=7"], 1, "first run: python nonisotropic.py evaluate_threat --dataset_name=digits --per_label=7"),
        (["--tangents=blur"], 2, "--N_coverage: evaluate_threat measures all tangents with weight 0.1"),
        (["--tangents", "--segmented"], 2, "--N_coverage: evaluate_threat measures each form alone"),
        (["--tangents=blurr"], 2, "did you mean 'blur'?"),
        (["--tangents", "--tangent_weight=0"], 2, "--tangent_weight: expected a number in [0.01, inf)"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[str], code: int, told: str, digits_root: Command, measured: Path
) -> None:
    if code == 1:
        words = [*words, "--selection=random"]
        digits_root.ok("compute_threat", "--dataset_name=digits", *words)
    done = digits_root("test", *TINY, *ATTACK, "--N_coverage=0.6", *words)
    assert done.returncode == code and told in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("inside", "alone", "examples", "verdict"),
    [
        (0.6, 0.25, 20, "the threat binds"),
        (0.2, 0.0, 20, "too few images to tell"),
        (0.21, 0.2, 1000, "hardly matters"),
        (0.3, 0.3, 20, "hardly matters"),
    ],
)
def test_words_do_not_say_more_than_the_images(inside: float, alone: float, examples: int, verdict: str) -> None:
    reference = {"threshold": None, "radius": 0.3, "accuracy": alone}
    metrics = {"accuracy": inside, "radius": 0.3, "norm": "PD", "num_examples": examples, "references": [reference]}
    assert verdict in binding(metrics)
    assert binding(metrics | {"references": []}) == ""


@pytest.mark.parametrize("desc", [TrainDesc, TestDesc])
def test_flags_of_anchors_under_a_threshold_by_coverage_are_kept(desc: type[Desc]) -> None:
    """A ball alone takes its threshold by coverage: stored commands and lists named another run."""
    values: dict[str, Any] = {"dataset_name": "digits", "model_name": "lenet_64", "per_label": 5, "threat_replicate": 2}
    asked = (
        {"adv_train": True, "N_train_coverage": 0.95} if desc is TrainDesc else {"adv_eval": True, "N_coverage": 0.95}
    )
    made = desc.from_flags(values | asked)
    assert "anchors" not in made.needed_runs()
    again = desc.from_flags(made.flags())
    assert (again.hash, again.flags()) == (made.hash, made.flags())
