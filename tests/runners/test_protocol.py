"""The frozen protocol: its figures on a fixed small model, what it fixes, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy
import pytest

from cli.main import main
from datasets.registry import DATASETS
from foundations.errors import RunError
from runners.test import protocol
from tests.conftest import PROJECT, Command
from threat_specification.attacks.registry import ATTACKS

NAME = "pd-bench-1"
NET = PROJECT / "tests/runners/data/protocol_lenet_16.safetensors"  # trained in l-inf 0.05, 6 epochs
MODEL = ["--dataset_name=digits", "--model_name=lenet_16", "--model_type=pretrained", f"--model_source=file:{NET}"]
TEST = ["test", *MODEL, f"--protocol={NAME}"]

# Attack that broke each image (0: none, -1: misclassified without), and the margins reached.
BROKEN_BY = [0, 1, 0, 1, 0, 0, 0, 1, 1, 0, -1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1]
MARGINS = [
    -3.36,
    0.02,
    -1.78,
    0.23,
    -0.46,
    -3.06,
    -0.09,
    1.84,
    1.83,
    -0.64,
    0.0,
    -1.21,
    -0.97,
    -4.54,
    0.09,
    1.01,
    -0.44,
    -2.02,
    0.41,
    -1.57,
    -2.07,
    -0.69,
    -1.87,
    1.68,
]


def test_figures_of_a_fixed_model_are_the_frozen_ones(digits_root: Command) -> None:
    """A change of the code that changes them breaks all comparisons with figures published before."""
    digits_root.ok("compute_threat", "--dataset_name=digits")
    result, rows = digits_root.result(*TEST), dict(numpy.load(digits_root.where(*TEST) / "examples.npz"))
    assert result["protocol"] == NAME and result["standard"]["accuracy"] == pytest.approx(23 / 24)
    assert result["N_adv"]["accuracy"] == 15 / 24 and result["N_adv"]["references"][0]["accuracy"] == 10 / 24
    assert list(result["N_adv"]["attacks"]) == protocol.read(NAME)["flags"]["attacks"].split(",")
    assert rows["N_adv_broken_by"].tolist() == BROKEN_BY
    assert rows["N_adv_loss"] == pytest.approx(numpy.array(MARGINS), abs=0.05)
    assert result["N_adv"]["passes"] == pytest.approx({"forward": 1039.9, "backward": 798.25}, rel=0.01)


def test_every_data_set_of_a_protocol_is_whole() -> None:
    content = protocol.read(NAME)
    assert {name in ATTACKS for name in content["flags"]["attacks"].split(",")} == {True}
    for name, entry in content["data_sets"].items():
        assert name in DATASETS
        rows, digests = entry["anchor_rows"], entry["digests"]
        assert set(digests) == {"anchors", "images", "pixels"}
        assert {digest is None for digest in digests.values()} == {rows is None}
        assert rows is None or len(set(rows)) == 50 * DATASETS[name].num_classes
        assert set(entry["flags"]) == {"num_examples", "N_threshold", "N_radius", "N_thresholds", "N_radii"}


def test_other_inputs_are_refused() -> None:
    frozen = protocol.read(NAME)["data_sets"]["mnist_5k"]["digests"]
    assert protocol.check_inputs(NAME, "mnist_5k", frozen) == []
    assert protocol.check_inputs(NAME, "cifar10", dict.fromkeys(frozen, "0")) == list(frozen)
    for what in frozen:
        with pytest.raises(RunError, match=f"expected {what} with the digest {frozen[what]}, got 0"):
            protocol.check_inputs(NAME, "mnist_5k", {**frozen, what: "0"})
    assert protocol.rows_digest([1, 2]) != protocol.rows_digest([2, 1])


def test_a_run_with_other_anchors_ends(digits_root: Command, tmp_path: Path) -> None:
    """Anchors that a change of the choice would have made, in the place of those of the protocol."""
    other = digits_root.ok("compute_threat", "--dataset_name=digits", "--selection=random") / "anchors.safetensors"
    made = digits_root.ok("compute_threat", "--dataset_name=digits")
    copy = Command(tmp_path)
    place = tmp_path / made.relative_to(digits_root.root)
    shutil.copytree(made, place)
    shutil.copy(other, place / "anchors.safetensors")
    refused = copy(*TEST)
    frozen = protocol.read(NAME)["data_sets"]["digits"]["digests"]["anchors"]
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert f"--protocol={NAME}: expected anchors with the digest {frozen}, got " in refused.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*TEST, "--N_radius=0.2"], "--protocol=pd-bench-1 fixes --N_radius=0.1, got 0.2"),
        ([*TEST, "--attacks=apgd_ce"], "--protocol=pd-bench-1 fixes --attacks="),
        ([*TEST, "--per_label=10"], "--protocol=pd-bench-1 fixes --per_label=50, got 10"),
        *(
            ([*TEST, flag], f"--protocol=pd-bench-1 fixes {flag.partition('=')[0]}=")
            for flag in (
                "--N_coverage=0.5",
                "--foreign_attacks=attack@attacks.py",
                "--evaluate_only_batch_test",
                "--subsample_fraction=0.5",
                "--random_labels_fraction=0.5",
                "--own_files",
                "--image_size=16",
                "--selection_space=raw",
                "--domain_expansion_factor=2",
                "--tf32",
                "--seed=1",
                "--test_replicate=2",
            )
        ),
        (["test", *MODEL, "--protocol=pd-bench-9"], "expected one of pd-bench-1, got pd-bench-9"),
        (
            ["test", "--dataset_name=cifar100", "--model_name=conv", f"--protocol={NAME}"],
            "expected --dataset_name to be",
        ),
    ],
)
def test_flags_that_it_fixes(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_a_model_by_its_directory(digits_root: Command, tmp_path: Path) -> None:
    """The arguments need not name its data set."""
    train = ["train", "--dataset_name=digits", "--model_name=lenet_16", "--training_steps=1it"]
    by_directory = digits_root.where("test", f"--train_dir={digits_root.ok(*train)}", f"--protocol={NAME}")
    assert by_directory == digits_root.where("test", *train[1:], f"--protocol={NAME}")
