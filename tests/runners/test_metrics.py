"""Results of `test` besides its figure, and that an interruption changes none of it."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import PROJECT, TINY, Command
from threat_specification import AnchorSet, ProjectedDisplacement

ATTACKED = ["test", *TINY, "--standard_eval", "--N_adv_eval", "--per_label=10", "--num_examples=23", "--shard_size=6"]
ATTACKED += ["--N_attack_iter=3", "--N_threshold=0.1", "--N_radius=0.3"]
GRID = [*ATTACKED, "--N_thresholds=0.05,0.2", "--N_radii=0.15", "--save_adversarials"]
GRID += ["--attacks=apgd_ce,minimal_gauge"]


@pytest.fixture(scope="module")
def with_grid(digits_root: Command) -> Path:
    return digits_root.ok(*GRID)


def test_a_grid_is_monotone_and_has_its_references(with_grid: Path) -> None:
    figures = json.loads((with_grid / "result.json").read_text())["N_adv"]
    cells = {
        (row["threshold"] or 9.0, row["radius"] or 9.0): row["accuracy"]
        for row in figures["curve"] + figures["references"]
    }
    assert set(cells) == {(t, r) for t in (0.05, 0.1, 0.2, 9.0) for r in (0.15, 0.3, 9.0)}
    for (t, r), accuracy in cells.items():
        assert all(accuracy <= cells[small] for small in cells if small[0] <= t and small[1] <= r)
    assert cells[0.1, 0.3] == figures["accuracy"] == list(figures["attacks"].values())[-1]
    assert cells[9.0, 9.0] == 0  # nothing but the pixel box
    rows = list(csv.DictReader((with_grid / "grid.csv").read_text().splitlines()))
    assert len(rows) == 12
    assert {(float(row["threshold"] or 9), float(row["radius"] or 9)): float(row["accuracy"]) for row in rows} == cells


def test_the_curve_agrees_with_the_examples(with_grid: Path) -> None:
    figures = json.loads((with_grid / "result.json").read_text())["N_adv"]
    with numpy.load(with_grid / "examples.npz", allow_pickle=False) as file:
        rows = dict(file)
    for point in figures["gauge_curve"]:
        assert point["accuracy"] == pytest.approx((rows["N_adv_gauge"] > 1.0001 * point["gauge"]).mean(), abs=1.5 / 23)
    # Three steps do not get below the set itself: there nothing was searched, and nothing is told.
    assert [point["gauge"] for point in figures["gauge_curve"]] == [1.0, 1.25, 1.5, 2.0, 3.0]
    at_one = next(point["accuracy"] for point in figures["gauge_curve"] if point["gauge"] == 1)
    assert at_one == figures["accuracy"]
    assert figures["name"].startswith("PD[k10,greedy_subsets,r1,") and figures["name"].endswith("]@0.1,Linf0.3")
    assert (rows["N_adv_forwards"][rows["N_adv_broken_by"] == -1] == 0).all()


def test_kept_images_are_what_the_rows_say(with_grid: Path, digits_root: Command) -> None:
    """Threat, norms and outcome, from the images and the model alone."""
    from datasets.registry import dataset_info, load_dataset
    from models.registry import build_model

    images = load_file(with_grid / "adversarials.safetensors")
    with numpy.load(with_grid / "examples.npz", allow_pickle=False) as file:
        rows = dict(file)
    assert (images["index"].numpy() == rows["index"]).all()
    split = load_dataset("digits").test
    index = torch.from_numpy(rows["index"])
    x, labels, found = split.pixels(index), split.labels[index], images["N_adv"]
    model = build_model("conv", dataset_info("digits")).eval()
    model.load_state_dict(load_file(digits_root.where("train", *TINY) / "model.safetensors"))
    broken = rows["N_adv_broken_by"] > 0
    wrong = (model(found).argmax(1) != labels).numpy()
    assert wrong[broken].all()
    assert (~wrong[rows["N_adv_correct"]]).all()
    rounded_wrong = (model((found * 255).round() / 255).argmax(1) != labels).numpy()
    assert (rounded_wrong & broken == rows["N_adv_rounded"]).all()
    anchors = digits_root.where("compute_threat", "--dataset_name=digits", "--per_label=10") / "anchors.safetensors"
    threat = ProjectedDisplacement(anchors=AnchorSet.load(anchors))
    assert numpy.allclose(threat.evaluate(x, labels, found).numpy(), rows["N_adv_threat"], atol=1e-6)
    assert numpy.allclose((found - x).flatten(1).abs().amax(1).numpy(), rows["N_adv_Linf"], atol=1e-6)


def test_images_can_be_asked_for_later(digits_root: Command) -> None:
    words = ["test", *TINY, "--adv_eval", "--adv_test_attack_type=pgd", "--num_examples=11", "--shard_size=5"]
    directory = digits_root.ok(*words)
    before = (directory / "examples.npz").read_bytes()
    assert not (directory / "adversarials.safetensors").exists()
    digits_root.ok(*words, "--save_adversarials")
    assert len(load_file(directory / "adversarials.safetensors")["adv"]) == 11
    assert (directory / "examples.npz").read_bytes() == before
    assert "complete already" in digits_root(*words, "--save_adversarials").stderr


def test_killed_at_random_moments_the_same_command_ends_with_the_same_bytes(
    with_grid: Path, digits_root: Command, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    subprocess.run(["cp", "-r", str(digits_root.root), str(root)], check=True)
    copy = Command(root)
    directory = copy.where(*GRID)
    subprocess.run(["rm", "-r", str(directory)], check=True)
    kept = []
    for wait in range(3):
        process = subprocess.Popen(
            [sys.executable, str(PROJECT / "nonisotropic.py"), *GRID, "--quiet"],
            env={**os.environ, "NONISOTROPIC_HOME": str(root), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        while len(list(directory.glob("shards/*.npz"))) <= wait and process.poll() is None:
            time.sleep(0.02)
        time.sleep(random.Random(wait).uniform(0, 0.3))
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept.append(len(list(directory.glob("shards/*.npz"))))
    assert kept == sorted(kept) and kept[0] >= 1 and kept[-1] < 4
    assert not (directory / "result.json").exists()
    copy.ok(*GRID)
    for name in ("examples.npz", "adversarials.safetensors", "grid.csv", "gauge_curve.csv"):
        assert (directory / name).read_bytes() == (with_grid / name).read_bytes()
    assert not (directory / "shards").exists()


def test_a_quick_look_is_the_first_shard(digits_root: Command) -> None:
    result = digits_root.result(*ATTACKED, "--evaluate_only_batch_test")
    assert result["standard"]["num_examples"] == result["N_adv"]["num_examples"] == 6


def test_members_alone_and_unknown_ones(digits_root: Command) -> None:
    alone = digits_root.result(*ATTACKED, "--attacks=pgd,post_hoc")["N_adv"]
    assert list(alone["attacks"]) == ["pgd", "post_hoc"]
    failed = digits_root(*ATTACKED, "--attacks=apgd_cee")
    assert failed.returncode == 2
    assert "unknown attack 'apgd_cee' (did you mean 'apgd_ce'?)" in failed.stderr
