"""Whole commands, run as a user runs them, on digits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TINY, Command
from threat_specification import AnchorSet

ALL_THREE = ["--standard_eval", "--adv_eval", "--N_adv_eval", "--per_label=10", "--num_examples=21", "--shard_size=6"]
ALL_THREE += ["--adv_test_attack_power_Linf=0.3", "--N_attack_iter=2"]


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.rglob("*") if file.is_file())


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in root.rglob("*") if file.is_file()}


def test_compute_threat(digits_root: Command) -> None:
    directory = digits_root.where("compute_threat", "--dataset_name=digits", "--per_label=10")
    assert files(directory) == ["anchors.png", "anchors.safetensors", "config.toml", "hparams.json", "result.json"]
    result = json.loads((directory / "result.json").read_text())
    assert result["num_anchors"] == 100 and result["per_label"] == 10
    assert set(result["coverage"]) == set("0123456789")
    assert result["dropped"] == {"count": 0, "indices": []}
    anchors = AnchorSet.load(directory / "anchors.safetensors")
    assert anchors.labels.bincount().tolist() == [10] * 10
    assert anchors.digest == result["digest"]


def test_train(digits_root: Command) -> None:
    directory = digits_root.where("train", *TINY)
    written = ["config.toml", "curves.png", "hparams.json", "metrics.jsonl", "model.safetensors", "result.json"]
    written += ["timing.jsonl"]
    snapshots = ["model.safetensors", "state.pt"] * 2
    assert files(directory) == sorted(written + snapshots)
    result = json.loads((directory / "result.json").read_text())
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert result["steps"] == 3 * (1437 // 128) == metrics[-1]["step"]
    assert [row["epoch"] for row in metrics] == [1, 2, 3]
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"]
    assert result["final"]["test_accuracy"] == metrics[-1]["test_accuracy"] > 0.5
    assert result["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]


def test_training_repeats_bit_for_bit_and_replicates_differ(digits_root: Command, command: Command) -> None:
    first = digits_root.where("train", *TINY)
    again = command.ok("train", *TINY, environment={"PYTHONHASHSEED": "7"})
    other = command.ok("train", *TINY, "--train_replicate=2")
    for name in ("model.safetensors", "metrics.jsonl", "hparams.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("more", [[], ["--adv_train", "--adv_train_attack_iter=1", "--awp", "--awp_gamma=0.05"]])
def test_two_processes_train_the_same_model(more: list[str], command: Command) -> None:
    """Half of every global batch each, gradients averaged: the weights of one process to rounding.

    So are those of a perturbation of the weights, which is one of the whole batch.
    """
    words = ["train", "--dataset_name=digits", "--model_name=conv", "--training_steps=20it", "--batch_size=33", *more]
    one = load_file(command.ok(*words) / "model.safetensors")
    shutil.rmtree(command.root / "runs")
    two = load_file(command.ok(*words, processes=2) / "model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        assert float((one[name] - two[name]).abs().max()) < 1e-5
    zero = load_file(command.ok(*words[:3], "--training_steps=0it") / "model.safetensors")
    assert max(float((one[name] - zero[name]).abs().max()) for name in one) > 1e-3


def test_batch_normalisation_is_over_the_whole_batch_of_all_processes(command: Command) -> None:
    """Over each part alone the weights of a few steps differed by far more than rounding, under one hash."""
    words = ["train", "--dataset_name=digits", "--model_name=resnet_8", "--training_steps=4it", "--batch_size=33"]
    words += ["--lr=0.001", "--lr_schedule=cosine", "--adv_train", "--adv_train_attack_iter=1"]
    one = load_file(command.ok(*words) / "model.safetensors")
    shutil.rmtree(command.root / "runs")
    two = load_file(command.ok(*words, processes=2) / "model.safetensors")
    assert one.keys() == two.keys() and any("running_var" in name for name in one)
    for name in one:
        assert torch.allclose(one[name].float(), two[name].float(), rtol=1e-4, atol=1e-5), name


def test_processes_hand_on_where_their_adversaries_ended(command: Command) -> None:
    """Images change processes between epochs: without what the other one found, half the starts would be others.

    The network hardly learns, since rounding, made larger by every step, would make other adversaries too.
    """
    words = ["train", "--dataset_name=digits", "--model_name=conv", "--training_steps=2ep", "--batch_size=240"]
    words += ["--adv_train", "--adv_train_attack_norm=L2", "--adv_train_attack_iter=2", "--adv_start=last", "--lr=1e-8"]
    ends = []
    for processes in (0, 2):
        run = command.ok(*words, processes=processes)
        files = sorted((run / "checkpoints").glob("*/last_adv.safetensors"))
        ends.append([load_file(file)["values"].float() for file in files])
        shutil.rmtree(command.root / "runs")
    (first, one), (_, two) = ends

    def near(these: torch.Tensor, those: torch.Tensor) -> float:
        return float(((these - those).flatten(1).norm(dim=1) < 0.01).float().mean())

    assert near(one, two) > 0.98
    assert near(first, one) < 0.5  # a second epoch from where they began is another one


@pytest.fixture(scope="module")
def tested(digits_root: Command) -> Path:
    return digits_root.ok("test", *TINY, *ALL_THREE)


def test_result_of_test(tested: Path) -> None:
    result = json.loads((tested / "result.json").read_text())
    for name in ("standard", "adv", "N_adv"):
        assert result[name]["num_examples"] == 21
        assert 0 <= result[name]["accuracy"] <= 1
    assert result["adv"]["accuracy"] <= result["standard"]["accuracy"]
    assert list(result["adv"]["attacks"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (result["adv"]["norm"], result["adv"]["threshold"]) == ("Linf", 0.3)
    assert (result["N_adv"]["norm"], result["N_adv"]["threshold"], result["N_adv"]["radius"]) == ("PD", 0.1, 0.3)
    for name in ("adv", "N_adv"):
        standing = list(result[name]["attacks"].values())
        assert standing == sorted(standing, reverse=True)
        assert standing[-1] == result[name]["accuracy"] == result[name]["curve"][-1]["accuracy"]


def test_examples_are_rows_in_data_set_order_that_explain_the_result(tested: Path) -> None:
    result = json.loads((tested / "result.json").read_text())
    with numpy.load(tested / "examples.npz", allow_pickle=False) as arrays:
        rows = {name: arrays[name] for name in arrays}
    assert all(len(values) == 21 for values in rows.values())
    assert (numpy.diff(rows["index"]) > 0).all()
    assert set(numpy.bincount(rows["label"])) == {2, 3}
    for name in ("standard", "adv", "N_adv"):
        assert rows[f"{name}_correct"].mean() == pytest.approx(result[name]["accuracy"])
    assert ((rows["standard_prediction"] == rows["label"]) == rows["standard_correct"]).all()
    assert (rows["N_adv_threat"] <= 0.1 * (1 + 1e-5)).all()
    assert (rows["N_adv_Linf"] <= 0.3 * (1 + 1e-5)).all()
    assert (tested / "strip.png").stat().st_size > 1000


def test_one_two_and_three_processes_give_the_same_bytes(tested: Path, digits_root: Command, tmp_path: Path) -> None:
    for processes in (2, 3):
        copy = Command(tmp_path / str(processes))
        shutil.copytree(digits_root.root, copy.root)
        shutil.rmtree(copy.where("test", *TINY, *ALL_THREE))
        directory = copy.ok("test", *TINY, *ALL_THREE, processes=processes)
        assert (directory / "examples.npz").read_bytes() == (tested / "examples.npz").read_bytes()
        result = json.loads((directory / "result.json").read_text())
        assert result["environment"]["world_size"] == processes


def test_the_same_command_again_does_nothing_but_say_so(tested: Path, digits_root: Command) -> None:
    before = snapshot(tested)
    for words in (["test", *TINY, *ALL_THREE], ["train", *TINY]):
        done = digits_root(*words)
        assert done.returncode == 0
        assert "complete already" in done.stderr
    assert snapshot(tested) == before


def test_a_copied_root_works_and_nothing_names_the_old_one(tested: Path, digits_root: Command, tmp_path: Path) -> None:
    copy = Command(tmp_path / "elsewhere")
    shutil.copytree(digits_root.root, copy.root)
    assert "complete already" in copy("test", *TINY, *ALL_THREE).stderr
    for file in copy.root.rglob("*"):
        if file.is_file():
            assert str(digits_root.root).encode() not in file.read_bytes(), file


def test_a_model_named_by_its_directory(tested: Path, digits_root: Command) -> None:
    train_dir = digits_root.where("train", *TINY)
    by_directory = digits_root.where("test", f"--train_dir={train_dir}", *ALL_THREE)
    assert by_directory == tested
    relative = train_dir.relative_to(digits_root.root)
    assert digits_root.where("test", f"--train_dir={relative}", *ALL_THREE) == tested


def test_stored_commands_lead_back_to_their_run(tested: Path, digits_root: Command) -> None:
    for file in digits_root.root.rglob("hparams.json"):
        words = json.loads(file.read_text())["command"].split()
        assert words[:2] == ["python", "nonisotropic.py"]
        assert digits_root.where(*words[2:]) == file.parent


def test_the_attack_stays_inside_by_an_independent_count(digits_root: Command) -> None:
    """The threat that examples.npz reports never exceeds the threshold, however small or large; nor do attacks stop
    short of it, or of the radius, or of the steps that were asked for."""
    for threshold, radius in (("0", "0.1"), ("0.03", "0.25"), ("5", "0.1")):
        words = ["test", *TINY, "--N_adv_eval", "--per_label=10", "--num_examples=10", f"--N_threshold={threshold}"]
        with numpy.load(digits_root.ok(*words, f"--N_radius={radius}", "--N_attack_iter=5") / "examples.npz") as arrays:
            rows = dict(arrays)
        attacked = rows["N_adv_broken_by"] >= 0
        assert (rows["N_adv_threat"] <= float(threshold) * (1 + 1e-5) + 1e-7).all()
        assert (rows["N_adv_Linf"] <= float(radius) * (1 + 1e-5) + 1e-7).all()
        reached = numpy.maximum(rows["N_adv_threat"] / max(float(threshold), 1e-9), rows["N_adv_Linf"] / float(radius))
        assert numpy.median(reached[attacked]) > 0.95
        standing = rows["N_adv_correct"]
        assert (rows["N_adv_backwards"][standing] >= 10 * 5).all()


def test_an_isotropic_attack_uses_its_whole_ball(digits_root: Command) -> None:
    """In a ball that only some images break in, whatever library finds them."""
    for norm, power in (("Linf", "0.08"), ("L2", "0.4")):
        words = ["test", *TINY, "--adv_eval", "--num_examples=20", f"--adv_test_attack_norm={norm}"]
        words += ["--adv_test_attack_type=apgd", f"--adv_test_attack_power_{norm}={power}"]
        directory = digits_root.ok(*words)
        with numpy.load(directory / "examples.npz") as arrays:
            rows = dict(arrays)
        broken = rows["adv_broken_by"] > 0
        assert broken.any()
        assert 0.95 * float(power) < rows[f"adv_{norm}"][broken].max() <= float(power) * (1 + 1e-5) + 1e-7
        figures = json.loads((directory / "result.json").read_text())["adv"]
        assert figures["threshold"] == float(power) and figures["norm"] == norm
        assert all("too high" in message for message in figures["warnings"])  # of one member alone it may be


def test_multi_train_lays_out_and_reports_its_children(digits_root: Command) -> None:
    words = ["multi_train", *TINY, "--toggle_N_aug", "--toggle_adv_train"]
    done = digits_root(*words)
    result = json.loads((digits_root.where(*words) / "result.json").read_text())
    assert [child["name"] for child in result["children"]] == [
        "conv_standard",
        "conv_adv_train",
        "conv_N_aug",
        "conv_N_aug+adv_train",
    ]
    first = result["children"][0]
    assert first["result"]["final"]["test_accuracy"] > 0.5
    assert digits_root.root / first["directory"] == digits_root.where("train", *TINY)
    failed = ["error" in child for child in result["children"]]
    assert done.returncode == int(any(failed))
    assert done.stdout.count("| conv_") == 4


def test_multi_test_goes_on_after_a_missing_model(digits_root: Command) -> None:
    words = ["multi_test", *TINY, "--toggle_mixup", "--standard_eval"]
    done = digits_root(*words)
    assert done.returncode == 1
    standard, missing = json.loads((digits_root.where(*words) / "result.json").read_text())["children"]
    assert standard["result"]["standard"]["accuracy"] > 0.5
    assert "first run: python nonisotropic.py train --dataset_name=digits --model_name=conv" in missing["error"]
    assert "--mixup" in missing["error"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dataset_name=cifar10", "--model_name=conv"], "cifar10"),
        ([*TINY, "--per_label=3", "--N_aug"], "first run: python nonisotropic.py compute_threat"),
    ],
)
def test_a_mistake_that_all_runs_of_a_sweep_share_is_told_once(command: Command, words: list[str], told: str) -> None:
    done = command("multi_train", *words, "--toggle_adv_train", "--toggle_mixup", "--toggle_N_adv_train")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and told in done.stderr
    assert not list(command.root.rglob("result.json"))


def test_report_is_one_page_over_everything(tested: Path, digits_root: Command) -> None:
    directory = digits_root.ok("report", "--dataset_name=digits")
    page = (directory / "report.html").read_text()
    result = json.loads((tested / "result.json").read_text())
    for text in ("conv_standard", "Accuracy", "Training", "Anchors", f"{result['N_adv']['accuracy']:.4f}"):
        assert text in page
        assert text in (directory / "report.md").read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert "http" not in page  # self-contained
    assert "PD &lt;= 0.1" in page  # escaped


def test_a_run_that_goes_on_says_that_its_seconds_are_not_all(command: Command) -> None:
    words = ("compute_threat", "--dataset_name=digits", "--per_label=3")
    where = command.ok(*words)
    assert "resumed" not in json.loads((where / "result.json").read_text())
    (where / "result.json").unlink()
    (where / "classes").mkdir()  # of what was done before
    assert json.loads((command.ok(*words) / "result.json").read_text())["resumed"] is True


def test_a_sweep_whose_run_was_removed_makes_it_again(digits_root: Command) -> None:
    words = ["multi_test", *TINY, "--standard_eval", "--num_examples=12"]
    child = digits_root.root / digits_root.result(*words)["children"][0]["directory"]
    shutil.rmtree(child)
    digits_root.ok(*words)
    assert (child / "result.json").is_file()
