"""The four runners with --device=cuda, on an emulated device: the results of --device=cpu."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import PROJECT

DEVICES = ("cpu", "cuda")
DATA = "--dataset_name=digits --per_label=5"
TRAIN = f"{DATA} --model_name=conv --batch_size=32"
STANDARD = f"{TRAIN} --training_steps=60it --random_flip --label_smoothing=0.1 --ema_decay=0.5"
ADVERSARIAL = (
    f"{TRAIN} --training_steps=2it --adv_train --adv_train_attack_iter=1 --N_adv_train --N_adv_train_attack_iter=1 "
    "--adv_start=last --awp --N_aug --mixup --cutmix --cutout=2 --augmix --random_crop=1 --clip_grad=1 "
    "--accumulation=2 --optimizer=adamw --lr=0.001 --precision=bf16 --channels_last --validation_fraction=0.01 "
    "--select=best"
)
TEST = f"test {STANDARD} --num_examples=4 --shard_size=3"
COMMANDS = {
    "compute_threat": f"compute_threat {DATA}",
    "train": f"train {STANDARD}",
    "train, adversarial": f"train {ADVERSARIAL}",
    "test": f"{TEST} --standard_eval --adv_eval --adv_test_attack_type=pgd --N_adv_eval --N_attack_iter=1 "
    "--N_thresholds=0.05,0.2 --attacks=momentum_ce,minimal_gauge --save_adversarials",
    "test, then project": f"{TEST} --adv_eval --adv_test_attack_type=pgd --then_project=pd,pd_s --mask_source=center",
    "evaluate_threat": f"evaluate_threat {STANDARD} --num_images=4 --images_per_shard=3 --suites=torchvision "
    "--severities=3 --bootstrap=100 --adversarials --adversarial_iter=1 --coverage_images=6",
}
UNLIKE = {
    "environment",
    "wall_seconds",
    "resumed",
    "seconds",
    "checksum",
}  # fields of result.json that differ between any two runs
TOLERANCE = 1e-4  # of what comes after projections; other results are the CPU's to the bit

Counted = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counted]:
    """A root with the runs of both devices, below `cpu` and `cuda`, and what the runs on cuda counted."""
    root = tmp_path_factory.mktemp("both")
    commands = [
        f"{each} --quiet --device={device} --root_dir={root / device}"
        for device in DEVICES
        for each in COMMANDS.values()
    ]
    done = subprocess.run(
        [sys.executable, str(PROJECT / "tests" / "emulated" / "commands.py"), str(root / "counts.json"), *commands],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=root,
    )
    assert done.returncode == 0, done.stderr
    table = json.loads((root / "counts.json").read_text())
    assert [row["code"] for row in table] == [0] * len(commands), done.stderr
    assert not any(row["kernels"] for row in table[: len(COMMANDS)])
    return root, dict(zip(COMMANDS, table[len(COMMANDS) :], strict=True))


def files(root: Path, pattern: str) -> list[tuple[Path, Path]]:
    """Files of this name in the runs of both devices, which have the same places."""
    found = [sorted(path.relative_to(root / device) for path in (root / device).rglob(pattern)) for device in DEVICES]
    assert found[0] == found[1] and found[0]
    return [(root / "cpu" / path, root / "cuda" / path) for path in found[0]]


def test_anchors_and_standard_training_are_the_same_bits(made: tuple[Path, Counted]) -> None:
    root, _ = made
    standard = [
        pair for pair in files(root, "*.safetensors") if "train/conv_standard" in str(pair[0].relative_to(root))
    ]
    assert "model.safetensors" in {mine.name for mine, _ in standard}
    for mine, theirs in [*standard, *files(root, "anchors.safetensors")]:
        assert mine.read_bytes() == theirs.read_bytes()


def test_results_are_those_of_the_cpu(made: tuple[Path, Counted]) -> None:
    """Every figure of result.json, and every array of examples.npz and adversarial training."""
    root, _ = made
    for mine, theirs in files(root, "result.json"):
        same(*(json.loads(path.read_text()) for path in (mine, theirs)))
    for mine, theirs in files(root, "examples.npz"):
        same(dict(numpy.load(mine)), dict(numpy.load(theirs)))
    for mine, theirs in files(root, "model.safetensors"):
        same(load_file(mine), load_file(theirs))


def same(mine: Any, theirs: Any) -> None:
    """Equal, up to TOLERANCE in numbers that are no whole ones."""
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - UNLIKE:
            same(mine[name], theirs[name])
    elif isinstance(mine, list):
        for one, other in zip(mine, theirs, strict=True):
            same(one, other)
    elif isinstance(mine, (float, numpy.ndarray, torch.Tensor)):
        assert numpy.allclose(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    else:
        assert mine == theirs


def test_the_runs_were_on_the_device_and_seldom_wait_outside_the_projection(made: tuple[Path, Counted]) -> None:
    """A step of standard training waits for nothing: what waits is done once an epoch, or once a run."""
    _, counted = made
    assert all(row["kernels"] > 0 for row in counted.values())
    assert counted["train"]["kernels"] > 100 * 60
    loop = {place: count for place, count in counted["train"]["places"].items() if place.startswith("training/loop")}
    assert not loop and counted["train"]["waits"] < 200
    drawing = sum(n for place, n in counted["evaluate_threat"]["places"].items() if "image_plots" in place)
    assert drawing < 100  # not one for each anchor
