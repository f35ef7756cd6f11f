"""evaluate_threat as a user runs it, on digits."""

from __future__ import annotations

import csv
import json
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
from sklearn.metrics import roc_auc_score

from datasets.registry import load_dataset
from tests.conftest import PROJECT, Command
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.perturbations.registry import SUITES

WORDS = [
    "evaluate_threat",
    "--dataset_name=digits",
    "--per_label=10",
    "--num_examples=40",
    "--shard_size=16",
    "--coverage_images=20",
]
WORDS += ["--severities=1,5", "--suites=C", "--bootstrap=100"]


def read(directory: Path) -> tuple[dict, dict[str, numpy.ndarray]]:
    with numpy.load(directory / "examples.npz", allow_pickle=False) as file:
        return json.loads((directory / "result.json").read_text()), dict(file)


@pytest.fixture(scope="module")
def measured(digits_root: Command) -> Path:
    return digits_root.ok(*WORDS)


def test_result_says_what_the_rows_say(measured: Path) -> None:
    result, rows = read(measured)
    table = result["table"]
    assert result["threats"] == ["PD", "PD-T", "L2", "Linf", "SSIM"]
    assert all(rows[name].shape == (40, len(table)) for name in result["threats"])
    assert (numpy.diff(rows["index"]) > 0).all() and set(numpy.bincount(rows["label"])) == {4}
    assert len({row["perturbation"] for row in table if row["suite"] == "C"}) == 19
    assert {row["group"] for row in table} == {"safe", "dose", "unsafe"}
    for column, row in enumerate(table):
        for name, summary in row["threats"].items():
            values = rows[name][:, column].astype(float)
            assert summary["mean"] == pytest.approx(values.mean(), rel=1e-4, abs=1e-6)
            assert summary["quantiles"]["0.5"] == pytest.approx(numpy.median(values), rel=1e-4, abs=1e-6)
            assert sum(summary["histogram"]) == 40
    lines = list(csv.DictReader((measured / "table.csv").read_text().splitlines()))
    assert len(lines) == 5 * len(table)
    assert {line["category"] for line in lines if line["perturbation"] == "pixelate"} == {"compression"}


def test_separations_by_scikit_learn(measured: Path) -> None:
    """Averaged over severities, then over types of safe perturbation, against each unsafe one."""
    result, rows = read(measured)
    table = result["table"]
    unsafe = [c for c, row in enumerate(table) if row["group"] == "unsafe"]
    types: dict[str, list[int]] = {}
    for column, row in enumerate(table):
        if row["group"] == "safe":
            types.setdefault(row["perturbation"], []).append(column)
    truth = [0] * 40 + [1] * 40
    for name in result["threats"]:
        of_type = {
            kind: numpy.mean(
                [
                    roc_auc_score(truth, numpy.concatenate((rows[name][:, s], rows[name][:, u])))
                    for s in of
                    for u in unsafe
                ]
            )
            for kind, of in types.items()
        }
        figures = result["separation"][name]
        assert figures["auroc"] == pytest.approx(numpy.mean(list(of_type.values())), abs=1e-6)
        assert figures["low"] <= figures["auroc"] <= figures["high"]
        for kind, auroc in of_type.items():
            assert result["separation_by_perturbation"][kind][name]["auroc"] == pytest.approx(auroc, abs=1e-6)
    for kind, found in result["separation_by_category"].items():
        of_kind = [
            result["separation_by_perturbation"][row["perturbation"]]["PD"]["auroc"]
            for row in table
            if row["category"] == kind and row["severity"] == 1
        ]
        assert found["PD"]["auroc"] == pytest.approx(numpy.mean(of_kind), abs=1e-6)
    assert set(result["separation_by_category"]) == {"noise", "blur", "compression", "digital", "weather", "occlusion"}
    assert result["separation"]["PD"]["auroc"] > max(result["separation"][n]["auroc"] for n in ("L2", "Linf"))
    assert set(result["separation_by_severity"]) == {"1", "5"}
    assert result["num_matched_pairs"] > 100
    assert set(result["separation_directions"]) == {"PD", "PD-T", "Linf"}


def test_threats_by_an_independent_count(measured: Path, digits_root: Command) -> None:
    """Another image and a half-way blend, from the data alone: PD by its definition, norms, and the ratio of both."""
    result, rows = read(measured)
    columns = {(row["perturbation"], row["severity"]): c for c, row in enumerate(result["table"])}
    whole, half = columns["other_class", 1], columns["blend", 0.5]
    assert numpy.allclose(rows["PD"][:, half] * 2, rows["PD"][:, whole], rtol=1e-4)
    assert numpy.allclose(rows["L2"][:, half] * 2, rows["L2"][:, whole], rtol=1e-4)
    split = load_dataset("digits").test
    x, labels = split.pixels(torch.from_numpy(rows["index"])), torch.from_numpy(rows["label"])
    path = digits_root.where("compute_threat", "--dataset_name=digits", "--per_label=10") / "anchors.safetensors"
    threat = ProjectedDisplacement(anchors=AnchorSet.load(path))
    brightness = columns["brightness", 1]  # one grey channel: + 0.05, clipped
    assert numpy.allclose(
        rows["PD"][:, brightness], threat.evaluate(x, labels, (x + 0.05).clamp(max=1)).numpy(), atol=1e-5
    )


def test_files_beside_the_result(measured: Path) -> None:
    names = ["separation", "distributions", "gallery", "severity", "heatmap", "directions", "slice"]
    for name in [*names, "heatmap_raw", "quadrants", "equal_linf"]:
        assert (measured / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (measured / f"{name}.pdf").read_bytes()[:4] == b"%PDF"
    assert not (measured / "shards").exists()


def test_interrupted_or_on_two_processes_it_gives_the_same_bytes(
    measured: Path, digits_root: Command, tmp_path: Path
) -> None:
    copy = Command(tmp_path)
    shutil.copytree(digits_root.root / "runs/digits/compute_threat", tmp_path / "runs/digits/compute_threat")
    directory = copy.where(*WORDS)
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "nonisotropic.py"), *WORDS],
        env={**os.environ, "NONISOTROPIC_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (directory / "shards/000000.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = (directory / "shards/000000.npz").stat().st_mtime_ns
    assert not (directory / "result.json").exists()
    copy.ok(*WORDS, processes=2)
    assert kept
    for name in ("examples.npz", "table.csv", "separation.csv", "gallery.png"):
        assert (directory / name).read_bytes() == (measured / name).read_bytes(), name


def test_anchors_divided_over_two_processes(measured: Path, digits_root: Command, tmp_path: Path) -> None:
    """By an odd number of shards, of which every process measures all."""
    copy = Command(tmp_path)
    shutil.copytree(digits_root.root / "runs/digits/compute_threat", tmp_path / "runs/digits/compute_threat")
    _, rows = read(measured)
    _, divided = read(copy.ok(*WORDS, "--shard_anchors", "--hang_minutes=0.5", processes=2))
    for name, values in rows.items():
        assert numpy.allclose(values, divided[name], rtol=1e-5, atol=1e-6), name


def test_models_weights_masks_files_and_other_anchors(digits_root: Command, tmp_path: Path) -> None:
    """Every optional part in one run: none of them is in the headline."""
    labels = load_dataset("digits").test.labels
    corrupted = numpy.random.default_rng(0).integers(0, 256, (2 * len(labels), 8, 8, 1), dtype=numpy.uint8)
    numpy.save(tmp_path / "fog.npy", corrupted)
    numpy.save(tmp_path / "labels.npy", numpy.tile(labels.numpy(), 2))
    weights = numpy.full((10, 10), 2.0)
    numpy.savetxt(tmp_path / "weights.csv", weights, delimiter=",")
    anchors = ["--dataset_name=digits", "--per_label=10", f"--class_weights={tmp_path / 'weights.csv'}"]
    digits_root.ok("compute_threat", *anchors)
    digits_root.ok("train", "--dataset_name=digits", "--model_name=resnet_8_4", "--training_steps=3ep")
    words = ["evaluate_threat", *anchors, "--model_name=conv", "--training_steps=3ep", "--morphs", "--adversarials"]
    words += ["--judge_name=resnet_8_4", "--perceptual=model:conv", f"--corruption_files={tmp_path}", "--stability"]
    words += ["--mask_source=center", "--num_examples=30", "--severities=1,2", "--suites=torchvision"]
    words += ["--adversarial_iter=5", "--bootstrap=100", "--coverage_images=20"]
    result, rows = read(digits_root.ok(*words))
    assert result["threats"][:4] == ["PD", "PD-T", "PD-W", "PD-S"] and "model:conv" in result["threats"]
    variants = [name for name in result["threats"] if name.startswith("PD[")]
    assert variants == ["PD[k=5]", "PD[k=10]", "PD[k=20]", "PD[k=50]", "PD[half 1]", "PD[half 2]"]
    assert result["stability"]["PD[k=50]"]["rank_correlation"] > 0.7
    table = {(row["perturbation"], row["severity"]): (c, row) for c, row in enumerate(result["table"])}
    column, row = table["fog (file)", 2]
    assert row["group"] == "safe" and row["suite"] == "files"
    x = load_dataset("digits").test.pixels(torch.from_numpy(rows["index"])).numpy()
    expected = corrupted[len(labels) + rows["index"]].transpose(0, 3, 1, 2) / 255 - x
    assert numpy.allclose(rows["L2"][:, column], numpy.sqrt((expected**2).sum((1, 2, 3))), rtol=1e-4)
    column, row = table["apgd_Linf", 0.2]
    broken = ~numpy.isnan(rows["PD"][:, column])
    assert row["num_examples"] == broken.sum() > 0
    assert (rows["Linf"][broken, column] <= 0.2 + 1e-5).all()
    assert numpy.isnan(rows["PD"][:, table["morph", 1][0]]).sum() == 30 - table["morph", 1][1]["num_examples"]
    assert table["morph", 1][1]["num_examples"] > 0
    assert 0 < result["separation_morphs"]["PD"]["auroc"] <= 1
    assert (result["num_matched_morph_pairs"] > 0) == bool(result["separation_morphs_matched"])
    again = json.loads((digits_root.where(*words) / "hparams.json").read_text())["command"]
    assert "--judge_name=resnet_8_4" in again and "--model_name=conv" in again and str(tmp_path) not in again


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--severities=0"], "--severities: expected whole numbers from 1 to 5, such as 1,3,5, got 0"),
        (["--suites=C,B"], "--suites: expected suites among C, C-bar, torchvision"),
        (["--suites="], "--suites: expected at least one, or --corruption_files, got neither"),
        (["--perceptual=ssim"], "--perceptual: expected lpips, dreamsim, dreamsim:<backbone> (one of ensemble, "),
        (["--perceptual=dreamsim:dino"], "did you mean 'dreamsim:dino_vitb16'?), got dreamsim:dino"),
        (["--morphs"], "add --model_name with its training flags"),
        (["--morphs", "--model_name=conv"], "expected another model than the one that makes the morphs"),
        (["--corruption_files=nowhere"], "--corruption_files: cannot read nowhere"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from cli.main import main

    assert main(["evaluate_threat", "--dataset_name=digits", *words, "--display_output_location"]) == 2
    assert message in capsys.readouterr().err


def test_missing_anchors_and_models_are_named(command: Command) -> None:
    done = command("evaluate_threat", "--dataset_name=digits")
    assert done.returncode == 1
    assert "first run: python nonisotropic.py compute_threat --dataset_name=digits" in done.stderr


def test_quick_changes_are_measured_on_request(digits_root: Command) -> None:
    """They are no part of the default, whose run is the same with its suites named."""
    words = [word for word in WORDS if not word.startswith("--suites")]
    assert digits_root.where(*words) == digits_root.where(*words, "--suites=C,C-bar,torchvision")
    result, _ = read(digits_root.ok(*words, "--suites=quick", "--severities=3", "--num_examples=20"))
    assert [row["perturbation"] for row in result["table"] if row["group"] == "safe"] == SUITES["quick"]
    assert all(row["threats"]["L2"]["mean"] > 0 for row in result["table"])


def test_stored_command_leads_back(measured: Path, digits_root: Command) -> None:
    words = json.loads((measured / "hparams.json").read_text())["command"].split()
    assert digits_root.where(*words[2:]) == measured
    words = [*WORDS, "--perceptual=model:conv", "--adv_train", "--training_steps=3ep"]
    from cli.main import runner_parser
    from runners.commands import command
    from runners.evaluate_threat.desc import EvaluateThreatDesc

    def described(words: list[str]) -> EvaluateThreatDesc:
        return EvaluateThreatDesc.from_flags(vars_of(words))

    def vars_of(words: list[str]) -> dict:
        return runner_parser("evaluate_threat", words[1:]).parse(words[1:])

    desc = described(words)
    assert described(command(desc).split()[2:]).hash == desc.hash
