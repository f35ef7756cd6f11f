"""The weighted and the segmented form of PD, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import TINY, Command
from threat_specification import AnchorSet, ProjectedDisplacement

ATTACKED = ["test", *TINY, "--N_adv_eval", "--per_label=10", "--num_examples=20", "--N_attack_iter=5"]
ATTACKED += ["--N_radius=0.4", "--N_threshold=0.2"]
TREE = "".join(f"{digit}: {'round' if digit in (0, 6, 8, 9) else 'straight/pointed'}\n" for digit in range(10))


def found_threats(directory: Path) -> numpy.ndarray:
    arrays = numpy.load(directory / "examples.npz")
    return arrays["N_adv_threat"]


def test_weights_are_calibrated_and_kept_with_the_anchors(digits_root: Command, tmp_path: Path) -> None:
    tree = tmp_path / "tree.txt"
    tree.write_text(TREE)
    weights_flag = f"--class_weights=tree:{tree}"
    missing = digits_root(*ATTACKED, "--weighted", weights_flag)
    assert missing.returncode == 1
    assert f"first run: python nonisotropic.py compute_threat --dataset_name=digits --per_label=10 {weights_flag}" in (
        missing.stderr
    )
    anchors_at = digits_root.ok("compute_threat", "--dataset_name=digits", "--per_label=10", weights_flag)
    weights = load_file(anchors_at / "class_weights.safetensors")["class_weights"]
    factor = json.loads((anchors_at / "result.json").read_text())["class_weights"]["factor"]
    assert torch.allclose(weights[0, [6, 1]] / factor, torch.tensor([2.0, 1.0]))
    assert torch.allclose(weights[1, [2, 6]] / factor, torch.tensor([3.0, 1.0]))
    stored = (anchors_at / "hparams.json").read_text()
    assert str(tmp_path) not in stored and "tree:tree.txt" in stored

    result = digits_root.result(*ATTACKED, "--weighted", weights_flag)["N_adv"]
    assert result["norm"] == "PD-W"
    found = found_threats(digits_root.where(*ATTACKED, "--weighted", weights_flag))
    assert 0 < found.max() <= 0.2 * (1 + 1e-5)
    plain, weighted = (
        ProjectedDisplacement(anchors=AnchorSet.load(anchors_at / "anchors.safetensors"), **form)
        for form in ({}, {"weighted": True, "class_weights": weights})
    )
    x = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 10
    assert not torch.allclose(plain.evaluate(x, labels, 1 - x), weighted.evaluate(x, labels, 1 - x))


def test_segmented_by_a_file_and_backgrounds(digits_root: Command, tmp_path: Path) -> None:
    file = tmp_path / "masks.safetensors"
    save_file({"masks": torch.ones(360, 1, 8, 8, dtype=torch.uint8)}, str(file))
    everything = [*ATTACKED, "--segmented", f"--mask_source=file:{file}"]
    assert digits_root.result(*everything)["N_adv"]["norm"] == "PD-S"
    plain = found_threats(digits_root.ok(*ATTACKED))
    # A mask of everything masks nothing.
    assert numpy.allclose(found_threats(digits_root.where(*everything)), plain, rtol=1e-6)

    standing = {
        background: digits_root.result(*ATTACKED, "--segmented", f"--background={background}")["N_adv"]["accuracy"]
        for background in ("frozen", "radius", "free")
    }
    assert standing["frozen"] > standing["radius"] >= standing["free"]


def test_anchors_other_than_those_of_training_are_reported_beside_them(digits_root: Command) -> None:
    trained = ["--N_adv_train", "--per_label=10", "--training_steps=2it", "--N_adv_train_attack_iter=2"]
    names = ["--dataset_name=digits", "--model_name=conv", *trained]
    digits_root.ok("compute_threat", "--dataset_name=digits", "--per_label=10", "--threat_replicate=2")
    digits_root.ok("train", *names)
    words = ["test", *names, "--N_adv_eval", "--num_examples=20", "--N_attack_iter=3", "--attacks=pgd"]
    same = digits_root.result(*words)
    assert "N_adv_train_anchors" not in same
    both = digits_root.result(*words, "--threat_replicate=2", "--train_threat_replicate=1")
    assert both["N_adv_train_anchors"]["name"] == same["N_adv"]["name"]
    assert both["N_adv"]["name"] != same["N_adv"]["name"]
    assert ",r2," in both["N_adv"]["name"]
    assert both["N_adv_train_anchors"]["accuracy"] == same["N_adv"]["accuracy"]
