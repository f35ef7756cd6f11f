"""test --exact_eval by the command; what it says, checked from the files alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

from cli.main import main
from datasets.registry import dataset_info, load_dataset
from models.registry import build_model
from tests.conftest import PROJECT, Command
from tests.threat_specification.attacks.linear import directions
from threat_specification import AnchorSet

MODEL = ["--dataset_name=digits", "--model_name=lenet_16", "--training_steps=3ep"]
SET = ["--per_label=10", "--N_adv_eval", "--N_threshold=0.1", "--N_radius=0.1", "--num_examples=24"]
WEAK = ["--attacks=random_search", "--N_attack_iter=1"]
EXACT = ["test", *MODEL, *SET, *WEAK, "--exact_eval"]


def test_what_attacks_missed_is_found_and_proven(digits_root: Command) -> None:
    """The weak attack leaves some that can be broken; the points are in the set, and the model is wrong there."""
    digits_root.ok("train", *MODEL)
    result, made = digits_root.result(*EXACT), digits_root.where(*EXACT)
    found, rows = result["exact"], dict(numpy.load(made / "examples.npz"))
    robust, broken, by = rows["exact_robust"], rows["exact_broken"], rows["exact_by"]
    assert not (robust & broken).any() and (robust | broken).all() and found["undecided"] == 0
    assert (found["num_examples"], found["accuracy"], found["upper"]) == (24, robust.mean(), 1 - broken.mean())
    assert (broken >= ~rows["N_adv_correct"]).all() and "exact_seconds" not in rows
    assert found["missed_by_attacks"] == (broken & rows["N_adv_correct"]).sum() == (broken & (by > 1)).sum() >= 2
    assert ((rows["exact_margin"] > 0) == broken).all() and found["accuracy"] < result["N_adv"]["accuracy"]
    assert (found["threshold"], found["norm"], found["radius"]) == (0.1, "PD", 0.1)
    points = load_file(made / "exact.safetensors")
    assert points["index"].tolist() == rows["index"][broken & (by > 1)].tolist()
    test, model = load_dataset("digits").test, build_model("lenet_16", dataset_info("digits"))
    model.load_state_dict(load_file(digits_root.where("train", *MODEL) / "model.safetensors"))
    model.eval()
    anchors = AnchorSet.load(
        digits_root.where("compute_threat", "--dataset_name=digits", "--per_label=10") / "anchors.safetensors"
    )
    for image, x, y in zip(points["image"], test.pixels(points["index"]), test.labels[points["index"]], strict=True):
        change = (image.double() - x.double()).flatten().numpy()
        assert (directions(anchors, x, int(y)) @ change).max() <= 0.1 * (1 + 1e-5) + 1e-7
        assert abs(change).max() <= 0.1 * (1 + 1e-5) + 1e-7 and image.min() >= 0 and image.max() <= 1
        with torch.no_grad():
            assert model(image[None]).argmax() != y
    told = digits_root(*EXACT).stdout
    assert "| proven robust " in told and "0 of 24 undecided" in told and not (made / "shards").exists()
    plain = [word for word in EXACT if word != "--exact_eval"]
    assert digits_root.where(*plain).parent != made.parent
    assert digits_root.where(*plain, "--exact_seconds=5").parent == digits_root.where(*plain).parent


def test_killed_and_then_on_two_processes_the_answers_are_the_same(digits_root: Command, tmp_path: Path) -> None:
    digits_root.ok("train", *MODEL)
    straight, copy = digits_root.ok(*EXACT), Command(tmp_path)
    for made in ("compute_threat", "train"):
        shutil.copytree(digits_root.root / "runs/digits" / made, tmp_path / "runs/digits" / made)
    directory = copy.where(*EXACT)
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "nonisotropic.py"), *EXACT],
        env={**os.environ, "NONISOTROPIC_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (first := directory / "shards/exact/000000.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = first.stat().st_mtime_ns
    assert kept and not (directory / "result.json").exists()
    copy.ok(*EXACT, processes=2)
    for name in ("examples.npz", "exact.safetensors"):
        assert (directory / name).read_bytes() == (straight / name).read_bytes(), name


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*EXACT, "--exact_seconds=0"], "--exact_seconds: expected a number in (0"),
        ([*EXACT, "--shard_anchors"], "leave out --shard_anchors"),
    ],
)
def test_wrong_flags(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err
