"""Training runs as commands: interrupted and resumed, selected, watched, planned; on digits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from cli.main import main
from tests.faults import processes
from training.objectives import Parts, Scores

BASE = ["train", "--dataset_name=digits", "--model_name=conv", "--training_steps=4ep", "--per_label=10", "--quiet"]
STEPS = 1437 // 128
QUARTER = ["--subsample_fraction=0.25", "--batch_size=32"]  # as many steps in an epoch, of fewer images
GROWING = ["--adv_train_start_epoch=1", "--adv_train_growth_epochs=2"]
OBJECTIVES = {
    "standard": ["--nesterov", "--weight_decay=1e-4", "--lr_schedule=onecycle", "--random_crop=1"],
    "mixing": ["--mixup", "--cutmix", "--cutout=2", "--augmix", "--optimizer=adamw", "--lr=0.001", "--ema_decay=0.9"],
    "N_aug": ["--N_aug", "--model_name=resnet_8", "--precision=bf16", "--channels_last"],
    "adv_train": ["--adv_train", "--adv_train_attack_iter=1", "--accumulation=2", "--clip_grad=1", *GROWING],
    "N_adv_train": ["--N_adv_train", "--N_adv_train_attack_iter=2", "--validation_fraction=0.1", "--select=best"],
    "last_starts": ["--N_adv_train", "--adv_start=last", "--N_adv_train_attack_iter=1", "--random_crop=1"],
    "certified_train": [
        "--certified_train",
        "--certified_train_radius=0.05",
        "--model_name=lenet_16",
        "--momentum=0.5",
    ],
    "both": [
        "--adv_train",
        "--N_adv_train",
        "--adv_loss=trades",
        "--awp",
        "--model_name=resnet_8",
        "--ema_decay=0.5",
        "--adv_train_attack_iter=1",
        "--N_adv_train_attack_iter=1",
        "--training_steps=38it",
    ],
}

# A run of the command that kill -9 ends before step 33: in the third epoch, two steps after a checkpoint.
KILLED = """
import os, signal, sys
from training.loop import Trainer
step = Trainer._step
def step_or_die(self, source, epoch):
    if self.iteration == 32:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, source, epoch)
Trainer._step = step_or_die
from cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def anchors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("anchors")
    words = ["compute_threat", "--dataset_name=digits", "--per_label=10", "--quiet", f"--root_dir={root}"]
    assert main(words) == main([*words, QUARTER[0]]) == 0
    return root


@pytest.fixture
def root(anchors: Path, tmp_path: Path) -> Path:
    """A root of its own, with anchors."""
    return Path(shutil.copytree(anchors, tmp_path / "root"))


def run(root: Path, *words: str) -> Path:
    """Train in this process; the run's directory."""
    before = {path for path in root.rglob("replicate_*") if "/train/" in str(path)}
    assert main([*BASE, f"--root_dir={root}", *words]) == 0
    (made,) = {path for path in root.rglob("replicate_*") if "/train/" in str(path)} - before or before
    return made


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_killed_and_resumed_is_the_straight_run_to_the_bit(
    objective: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [*BASE, *QUARTER, *OBJECTIVES[objective], "--checkpoint_minutes=1e-7"]
    words = [word for word in told if word != "--quiet"]
    again = Path(shutil.copytree(root, tmp_path / "again"))
    (program := tmp_path / "killed.py").write_text(KILLED)
    killed = processes.run(again, *words, program=program)
    assert killed.returncode == -9, killed.stderr
    (directory,) = (again / "runs/digits/train").glob("*/replicate_1")
    assert not (directory / "result.json").exists() and len(rows(directory)) in (2, 3)
    newest = max((directory / "checkpoints").iterdir())
    assert newest.name == "step_000000032"
    shutil.rmtree(newest)  # so that a step is taken again
    capsys.readouterr()
    assert main([*words, f"--root_dir={again}"]) == 0
    assert "going on from step 31 of" in capsys.readouterr().err
    straight = run(root, *words[1:])
    assert straight.relative_to(root) == directory.relative_to(again)
    for name in ("model.safetensors", "metrics.jsonl", "hparams.json"):
        assert (straight / name).read_bytes() == (directory / name).read_bytes(), name
    assert (straight / "augmentation.png").exists() == (objective == "N_aug")
    results = [json.loads((path / "result.json").read_text()) for path in (straight, directory)]
    assert results[0]["final"] == results[1]["final"] and results[0]["steps"] == results[1]["steps"]


def test_augmentation_and_accumulation_train(root: Path) -> None:
    """More parts of a batch are the same steps, to rounding, where no statistics are taken."""
    whole, parts = (run(root, f"--accumulation={n}", "--training_steps=8it") for n in (1, 4))
    first, second = (load_file(path / "model.safetensors") for path in (whole, parts))
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)
    assert [row["step"] for row in rows(parts)] == [8]


def test_the_best_epoch_by_held_out_images_is_kept(root: Path) -> None:
    words = ["--validation_fraction=0.2", "--select=best", "--adv_train", "--adv_train_attack_iter=2"]
    # Training goes wrong after the first epochs: the learning rate rises.
    directory = run(root, *words, "--lr=0.85", "--warmup_steps=8ep", "--training_steps=8ep")
    result, history = json.loads((directory / "result.json").read_text()), rows(directory)
    robust = [row["validation_robust_accuracy"] for row in history]
    best = max(range(len(robust)), key=lambda i: robust[i])
    assert result["selected_epoch"] == best + 1 < len(history)
    assert result["final"]["test_accuracy"] == history[best]["test_accuracy"] != history[-1]["test_accuracy"]
    assert all(row["validation_robust_accuracy"] <= row["validation_accuracy"] for row in history)
    kept = load_file(directory / "model.safetensors")
    newest = sorted((directory / "checkpoints").iterdir())[-1]
    assert all(kept[name].equal(value) for name, value in load_file(newest / "best.safetensors").items())
    assert not all(kept[name].equal(value) for name, value in load_file(newest / "model.safetensors").items())


def test_adversaries_grow_in_training_and_are_whole_on_held_out_images(root: Path) -> None:
    words = [
        "--adv_train",
        "--adv_train_attack_iter=2",
        "--adv_train_attack_power_Linf=0.2",
        "--validation_fraction=0.1",
    ]
    whole = rows(run(root, *words, "--training_steps=1ep"))[0]
    small = rows(run(root, *words, "--training_steps=1ep", "--adv_train_growth_epochs=19"))[0]
    assert small["train_adv_accuracy"] > whole["train_adv_accuracy"] + 0.05
    # A twentieth of the ball moves few images: that of validation is another one.
    assert small["validation_robust_accuracy"] < small["validation_accuracy"] - 0.2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--adv_train_growth_epochs=1"], "reach their full size in epoch 2, training ends in epoch 1"),
        (["--adv_train_start_epoch=2"], "reach their full size in epoch 3, training ends in epoch 1"),
        (["--training_steps=2ep", "--adv_train_growth_epochs=1"], ""),
    ],
)
def test_adversaries_that_come_too_late_are_told_of(
    words: list[str], told: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--adv_train", "--adv_train_attack_iter=1", "--training_steps=1ep", *words]
    assert main([*BASE[:-1], *short, f"--root_dir={root}"]) == 0
    err = capsys.readouterr().err
    assert told in err if told else "full size" not in err


def test_adversaries_go_on_from_the_epoch_before_where_asked_to(root: Path) -> None:
    """In the first epoch all starts are random; from the second on they are not."""
    words = ["--adv_train", "--adv_train_attack_iter=1", "--training_steps=2ep"]
    random, last = (rows(run(root, *words, f"--adv_start={start}")) for start in ("random", "last"))
    assert random[0] == last[0] and random[1] != last[1]


def test_a_model_is_evaluated_on_what_its_training_held_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The accuracy that the history of training ends with, in a run whose name says on what."""
    words = ["--validation_fraction=0.3", "--training_steps=2ep"]
    trained = run(root, *words)
    history = rows(trained)
    test = ["test", "--standard_eval", "--split=validation", f"--root_dir={root}"]
    assert main([*test, *BASE[1:], *words]) == 0
    (directory,) = (root / "runs/digits/test").glob("conv_standard_validation_*/replicate_1")
    result = json.loads((directory / "result.json").read_text())
    assert result["standard"]["accuracy"] == history[-1]["validation_accuracy"] != history[-1]["test_accuracy"]
    assert result["standard"]["num_examples"] == round(0.3 * 1437)
    capsys.readouterr()
    assert main([*test, f"--train_dir={trained}"]) == 0
    assert "complete already" in capsys.readouterr().err
    assert main([*test, f"--train_dir={trained}", "--num_examples=50", "--quiet"]) == 0
    some, every = (
        set(numpy.load(path / "examples.npz")["index"].tolist())
        for path in (Path(capsys.readouterr().out.splitlines()[-1]), directory)
    )
    assert len(some) == 50 and some < every
    run(root)
    assert main([*test, *BASE[1:]]) == 2
    expected = "--split=validation: expected a model that was trained with --validation_fraction above 0"
    assert expected in capsys.readouterr().err


def test_a_model_by_its_directory_sees_images_as_it_learnt_them(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the defaults for what its training had set, accuracy was that of other images, without a word."""
    drawn = ["--dataset_name=synthetic", "--synthetic_shape=1x8x8", "--synthetic_train=64", "--data_seed=3"]
    model = ["--model_name=lenet_8", "--training_steps=3ep", "--batch_size=8", f"--root_dir={root}", "--quiet"]

    def called(*words: str) -> str:
        assert main([*words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out.splitlines()[-1]

    trained = called("train", *drawn, *model)
    by_flags = called("test", *drawn, *model, "--standard_eval")
    by_directory = ["--standard_eval", f"--train_dir={trained}", f"--root_dir={root}", "--quiet"]
    assert called("test", *by_directory) == called("test", *by_directory, "--data_seed=3") == by_flags
    digits = run(root)
    for words, told in (
        (["test", *by_directory, "--data_seed=4"], "was trained with --data_seed=3, not 4; leave it out"),
        (["test", *by_directory, "--data_seed=0"], "was trained with --data_seed=3, not 0; leave it out"),
        (["test", *by_directory, "--synthetic_shape=1x4x4"], "was trained with --synthetic_shape=1x8x8, not 1x4x4"),
        (["evaluate_threat", *drawn, "--adversarials", f"--train_dir={digits}"], "on digits, not on synthetic"),
    ):
        capsys.readouterr()
        assert main([*words, f"--root_dir={root}"]) == 2
        assert told in capsys.readouterr().err


def test_held_out_images_are_those_of_the_same_training_set(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a part of the data set other images are held out: of all, some would have been trained on."""
    words = ["--validation_fraction=0.3", "--training_steps=1ep", "--subsample_fraction=0.5", "--data_seed=1"]
    trained = run(root, *words)
    test = ["test", "--standard_eval", "--split=validation", f"--root_dir={root}", f"--train_dir={trained}", "--quiet"]
    assert main(test) == 2
    told = "trained on other images; expected --subsample_fraction=0.5, --data_seed=1"
    assert told in capsys.readouterr().err
    assert main([*test, "--subsample_fraction=0.5", "--data_seed=1"]) == 0
    (directory,) = (root / "runs/digits/test").glob("*/replicate_1")
    result = json.loads((directory / "result.json").read_text())
    assert result["standard"]["accuracy"] == rows(trained)[-1]["validation_accuracy"]


def test_masks_of_held_out_images_are_their_own(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks go by the row in the training set: those of other images make no difference."""
    words = ["--validation_fraction=0.1", "--training_steps=1ep"]
    run(root, *words)
    masks = torch.ones(1437, 1, 8, 8, dtype=torch.uint8)
    found = []
    for name in ("all", "held_out"):
        save_file({"masks": masks}, tmp_path / f"{name}.safetensors")
        attack = ["--N_adv_eval", "--attacks=apgd_ce", "--N_attack_iter=3", "--segmented", f"--root_dir={root}"]
        source = f"--mask_source=file:{tmp_path}/{name}.safetensors"
        assert main(["test", *BASE[1:], *words, "--split=validation", *attack, source]) == 0
        directory = Path(capsys.readouterr().out.splitlines()[-1])
        found.append(dict(numpy.load(directory / "examples.npz")))
        masks[torch.ones(1437, dtype=torch.bool).index_fill(0, torch.from_numpy(found[0]["index"]), False)] = 0
    assert int(masks.flatten(1).any(1).sum()) == round(0.1 * 1437)
    assert all((found[0][name] == found[1][name]).all() for name in ("index", "label", "N_adv_correct", "N_adv_loss"))
    source = f"file:{tmp_path}/all.safetensors"
    train = ["train", "--N_adv_train", "--N_train_segmented", f"--N_train_mask_source={source}"]
    test = ["test", "--split=validation", "--N_adv_eval", "--segmented", f"--mask_source={source}"]
    for refused in (train, test):
        assert main([*refused, *BASE[1:], *words, "--subsample_fraction=0.5", f"--root_dir={root}"]) == 2
        assert "expected all training images, got --subsample_fraction=0.5" in capsys.readouterr().err


def test_the_moving_average_is_what_is_evaluated_and_kept(root: Path) -> None:
    directory = run(root, "--ema_decay=0.95")
    kept, newest = load_file(directory / "model.safetensors"), directory / "checkpoints/step_000000044"
    average = {name.removeprefix("module."): value for name, value in load_file(newest / "average.safetensors").items()}
    assert int(average.pop("n_averaged")) == 44
    assert all(kept[name].equal(value) for name, value in average.items())
    assert not any(
        kept[name].equal(value)
        for name, value in load_file(newest / "model.safetensors").items()
        if name.endswith("weight")
    )
    words = ["test", *BASE[1:], "--ema_decay=0.95", "--standard_eval", f"--root_dir={root}"]
    assert main(words) == 0
    (tested,) = (root / "runs/digits/test").glob("*/replicate_1/result.json")
    assert json.loads(tested.read_text())["standard"]["accuracy"] == rows(directory)[-1]["test_accuracy"]


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_checkpoint(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, score = [], Parts.score

    def broken(self: Parts, model: torch.nn.Module, parts: Any) -> Scores:
        calls.append(1)
        scores = score(self, model, parts)
        return Scores(scores.loss * float("inf"), scores.correct) if len(calls) > 15 else scores

    monkeypatch.setattr(Parts, "score", broken)
    assert main([*BASE, f"--root_dir={root}", "--checkpoint_minutes=1e-7"]) == 1
    told = capsys.readouterr().err
    assert re.search(
        r"the loss became (inf|nan) in epoch 2; try a smaller --lr; the last good .* step_000000015\n", told
    )
    (directory,) = (root / "runs/digits/train").glob("*/replicate_1")
    assert not (directory / "result.json").exists()
    good = load_file(directory / "checkpoints/step_000000015/model.safetensors")
    assert all(bool(value.isfinite().all()) for value in good.values())


def test_what_a_run_leaves(root: Path) -> None:
    directory = run(root, "--keep_checkpoints=1", "--tensorboard")
    names = {path.name for path in directory.iterdir()}
    assert names == {"checkpoints", "config.toml", "curves.png", "hparams.json", "metrics.jsonl", "model.safetensors",
                     "result.json", "tensorboard", "timing.jsonl", "trackers.json"}  # fmt: skip
    assert [path.name for path in (directory / "checkpoints").iterdir()] == [f"step_{4 * STEPS:09d}"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert logged == [(row["step"], pytest.approx(row["train_loss"])) for row in rows(directory)]
    state = torch.load(next((directory / "checkpoints").iterdir()) / "state.pt", weights_only=True)
    assert {"optimizer", "scaler", "random", "iteration", "position", "totals"} <= state.keys()


def test_a_plan_is_printed_and_nothing_is_made(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(root)
    before = sorted(root.rglob("*"))
    capsys.readouterr()
    words = [*BASE[1:], "--toggle_mixup", "--toggle_adv_train", "--dry_run", f"--root_dir={root}"]
    assert main(["multi_train", *words]) == 0
    told = capsys.readouterr().out
    assert sorted(root.rglob("*")) == before
    assert told.count("to do") == 3 and told.count("complete") == 1 and str(done) in told
    assert "conv_mixup+adv_train" in told


def test_mistakes_are_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        (["--precision=fp16"], "--precision=fp16: expected a GPU; use --precision=bf16 here"),
        (["--select=best"], "--select=best: expected --validation_fraction above 0 to select by, got 0"),
        (["--N_adv_train", "--N_train_weighted"], "--N_train_weighted: expected --class_weights=FILE"),
        (["--optimizer=adamax"], "--optimizer: expected one of sgd, adam, adamw, got adamax (did you mean 'adam"),
        (["--ema_decay=1"], "--ema_decay: expected a number below 1, got 1"),
    ):
        assert main([*BASE, *words, f"--root_dir={root}"]) == 2
        assert expected in capsys.readouterr().err
    assert not (root / "runs/digits/train").exists()
