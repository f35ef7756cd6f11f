"""Several processes: one is killed, stands still, or fails where the others do not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from foundations.watchdog import FAILED, GRACE, WAITING, WORKING, Sign, verdict
from tests.faults.processes import (
    TORCHRUN,
    copied,
    differences,
    directory,
    epochs,
    finish,
    kill_session,
    run,
    soak,
    start,
    wait_until,
    workers,
)

TWO = [*TORCHRUN, "--nproc_per_node=2"]
TRAIN = ("train", "--dataset_name=digits", "--model_name=conv", "--training_steps=12ep", "--checkpoint_minutes=0")
LIMIT = 10.0


def signs(*told: tuple[int, str, float]) -> dict[int, Sign]:
    return {rank: Sign(*sign) for rank, sign in enumerate(told)}


@pytest.mark.parametrize(
    "me, told, expected",
    [
        (0, [(5, WORKING, 9.0), (5, WORKING, 1.0)], ""),  # nobody stands still for long
        (
            0,
            [(6, WORKING, 11.0), (5, WORKING, 11.0)],
            "rank 1 made no progress for 10 seconds",
        ),  # 0 waits in a collective
        (0, [(5, WAITING, 99.0), (5, WORKING, 11.0)], "rank 1 made no progress"),
        (0, [(5, WAITING, 99.0), (5, WORKING, 9.0)], ""),  # slow is not still
        (0, [(5, WORKING, 11.0), (6, WORKING, 11.0)], "rank 0 made no progress"),
        (0, [(7, WORKING, 11.0), (5, WORKING, 11.0), (5, WORKING, 12.0)], "ranks 1, 2 made no progress"),
        (0, [(7, WAITING, 11.0), (5, WAITING, 11.0)], "all processes wait for each other since 10 seconds"),
        (0, [(7, WAITING, 11.0), (5, WAITING, 9.0)], ""),
        (1, [(5, WORKING, 11.0), (6, WORKING, 11.0)], "rank 0 made no progress"),
        (1, [(6, WORKING, 11.0), (5, WORKING, 11.0)], ""),  # for rank 0 to say
        (1, [(5, WAITING, 99.0), (6, WAITING, 99.0)], ""),
        (0, [(5, WORKING, 1.0), (5, FAILED, GRACE - 1)], ""),  # the launcher has time to act
        (0, [(5, WORKING, 1.0), (5, FAILED, GRACE + 1)], "rank 1 failed, and this process was waiting for it"),
    ],
)
def test_who_stands_still(me: int, told: list[tuple[int, str, float]], expected: str) -> None:
    now = 1000.0
    known = signs(*((beats, state, now - still) for beats, state, still in told))
    found = verdict(me, known, now, LIMIT)
    assert found.startswith(expected) and bool(found) == bool(expected)


def test_without_a_limit_only_failures_count() -> None:
    known = signs((6, WORKING, 0.0), (5, WORKING, 0.0))
    assert verdict(0, known, 1e6, 0.0) == ""


@soak
@pytest.mark.parametrize("still", [0, 1])
def test_a_process_that_stands_still_ends_the_run_with_its_name(still: int, tmp_path: Path) -> None:
    process = start(tmp_path, *TRAIN, "--training_steps=500ep", "--hang_minutes=0.1", launcher=TWO)
    wait_until(lambda: epochs(tmp_path) >= 1, process)
    os.kill(workers(process)[still], signal.SIGSTOP)
    begun = time.monotonic()
    try:
        _, told = process.communicate(timeout=120)  # torchrun gives a stopped worker 30 seconds to end
    finally:
        kill_session(process)
    assert process.returncode == 1
    assert f"rank {still} made no progress for 6 seconds (--hang_minutes); the same command goes on" in told
    assert time.monotonic() - begun < 100


# Training fails in rank 1 alone, after the model was built: rank 0 waits for it in a collective.
FAILS = """
import os, sys
import foundations.watchdog
foundations.watchdog.GRACE = float(os.environ["GRACE"])
foundations.watchdog.Watchdog.all_arrive.__defaults__ = (foundations.watchdog.GRACE,)
from runners.train.runner import Train
run = Train.run
def fail(self):
    if self.environment.rank == 1 and self.desc.training.adv_train:
        raise OSError("the disk of this node")
    return run(self)
Train.run = fail
from cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("runner", [pytest.param("train", marks=soak), "multi_train"])
def test_a_process_that_fails_leaves_nobody_waiting(
    runner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "fails.py"
    program.write_text(FAILS)
    words = [*TRAIN, "--training_steps=1ep", "--adv_train_attack_iter=1"]
    words = ["multi_train", *words[1:], "--toggle_adv_train"] if runner == "multi_train" else [*words, "--adv_train"]
    monkeypatch.setenv("GRACE", "3")
    process = start(tmp_path, *words, launcher=TWO, entry=[str(program)])
    try:
        _, told = process.communicate(timeout=90)
    finally:
        kill_session(process)
    assert process.returncode == 1
    assert "the disk of this node" in told
    if runner == "multi_train":
        assert "conv_adv_train failed in one process of several: the disk of this node" in told.replace("\n", " ")
        finished = list((tmp_path / "runs/digits/train").glob("conv_standard*/replicate_1/result.json"))
        assert len(finished) == 1  # the other child is done, and stays


# The weights of rank 1 are others, as with a file that one node cannot see in its newest form.
DIFFERS = """
import sys, torch
import runners.test.inputs as inputs
read = inputs.read_model
def other(desc, model, environment, spec):
    classifier = read(desc, model, environment, spec)
    if environment.rank == 1:
        for values in classifier.state_dict().values():
            values.add_(1)
    return classifier
inputs.read_model = other
from cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_all_processes_judge_the_weights_of_the_first(tmp_path: Path) -> None:
    program, alone, two = tmp_path / "differs.py", tmp_path / "alone", tmp_path / "two"
    program.write_text(DIFFERS)
    words = ["--dataset_name=digits", "--model_name=resnet_8", "--training_steps=1ep", "--quiet"]
    tested = ["test", *words, "--standard_eval", "--adv_eval", "--adv_test_attack_type=pgd", "--num_examples=40"]
    finish(alone, "train", *words)
    shutil.copytree(alone, two)
    finish(alone, *tested, "--shard_size=10")
    finish(two, *tested, "--shard_size=10", processes=2, program=program)
    assert differences(directory(alone, "test"), directory(two, "test")) == []


def test_a_killed_worker_is_started_again_and_goes_on(tmp_path: Path) -> None:
    straight, root = tmp_path / "straight", tmp_path / "root"
    finish(straight, *TRAIN, processes=2)
    process = start(root, *TRAIN, launcher=[*TWO, "--max-restarts=3"])
    wait_until(lambda: epochs(root) >= 2, process)
    os.kill(workers(process)[1], signal.SIGKILL)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert "going on from step" in told
    assert differences(directory(straight, "train"), directory(root, "train")) == []


# Rank 1 cannot read the newest checkpoint, once.
UNREAD = """
import os, sys
import training.checkpoints as checkpoints
read, seen = checkpoints._read, []
def once(path):
    if os.environ["RANK"] == "1" and not seen:
        seen.append(path)
        return None
    return read(path)
checkpoints._read = once
from cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_processes_go_on_from_one_checkpoint_or_not_at_all(tmp_path: Path) -> None:
    """They went on from two, and the mean of two networks was a complete run."""
    straight, root, program = tmp_path / "straight", tmp_path / "root", tmp_path / "unread.py"
    program.write_text(UNREAD)
    finish(straight, *TRAIN, processes=2)
    shutil.copytree(straight, root)
    (directory(root, "train") / "result.json").unlink()
    newest = max((directory(root, "train") / "checkpoints").glob("step_*"))
    shutil.rmtree(newest)
    failed = run(root, *TRAIN, processes=2, program=program)
    assert failed.returncode
    assert "from which the first process goes on, cannot be read by another" in failed.stderr
    assert not (directory(root, "train") / "result.json").exists()
    finish(root, *TRAIN, processes=2)
    assert differences(directory(straight, "train"), directory(root, "train")) == []


DIVIDED = [
    *("train", "--dataset_name=digits", "--model_name=conv", "--per_label=10", "--training_steps=5it"),
    *("--batch_size=431", "--accumulation=2", "--validation_fraction=0.1", "--select=best", "--checkpoint_minutes=0"),
    *("--N_aug", "--augmentation_frequency=1", "--N_adv_train", "--N_adv_train_radius=0.1"),
    *("--N_adv_train_attack_iter=2", "--adv_start=last"),
]

# kill -9 of rank 1 before its fifth step: one step after the checkpoint of the first epoch.
KILLED = """
import os, signal, sys
from training.loop import Trainer
step = Trainer._step
def step_or_die(self, source, epoch):
    if (self.iteration, os.environ["RANK"]) == (4, "1"):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, source, epoch)
Trainer._step = step_or_die
from cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_training_with_anchors_divided_over_processes(digits_root, tmp_path: Path) -> None:
    """The weights of one process to rounding, and killed and started again its own to the bit.

    The processes' parts differ in length, and only one of them has images to validate on.
    """
    program, divided = tmp_path / "killed.py", [*DIVIDED, "--shard_anchors", "--hang_minutes=0.5"]
    program.write_text(KILLED)
    alone, straight, killed = (copied(digits_root.root, tmp_path / name) for name in ("alone", "straight", "killed"))
    for root in (alone, straight, killed):
        shutil.rmtree(root / "runs/digits/train")
    finish(alone, *DIVIDED)
    finish(straight, *divided, processes=2)
    assert run(killed, *divided, processes=2, program=program).returncode
    assert "going on from step 3" in finish(killed, *divided, processes=2)
    assert differences(directory(straight, "train"), directory(killed, "train")) == []
    one, two = (load_file(directory(root, "train") / "model.safetensors") for root in (alone, straight))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    read = lambda root: (directory(root, "train") / "metrics.jsonl").read_text().splitlines()[-1]  # noqa: E731
    last = [json.loads(read(root)) for root in (alone, straight)]
    assert last[0] == pytest.approx(last[1], abs=1e-3)
    assert 0 < last[1]["validation_robust_accuracy"] < last[1]["validation_accuracy"]
