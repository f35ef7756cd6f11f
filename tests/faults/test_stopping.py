"""A run that is asked to end does so in good order, and the same command ends as if nothing had been."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from foundations.plain_networks import PlainNetwork
from foundations.signals import Interrupted
from models.checkpoints import read_state_dict
from models.robustbench import load_zoo_model
from runners.report.collect import finished_runs
from runners.trackers import _imported
from testing.exact_network import Network
from testing.foreign import _imported as imported_attacks
from tests.faults.processes import (
    PROJECT,
    TORCHRUN,
    copied,
    differences,
    directory,
    epochs,
    finish,
    run,
    soak,
    start,
    wait_until,
    workers,
)
from threat_specification.projected_displacement.class_weights import read_matrix

NETWORK = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
TRAIN = ("train", "--dataset_name=digits", "--model_name=conv", "--training_steps=12ep", "--checkpoint_minutes=0")
ATTACK = (
    "test",
    "--dataset_name=digits",
    "--model_name=conv",
    "--training_steps=3ep",
    "--per_label=10",
    "--N_adv_eval",
    "--num_examples=40",
    "--shard_size=10",
    "--attacks=apgd_ce",
    "--N_attack_iter=25",
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which training went through undisturbed."""
    root = tmp_path_factory.mktemp("straight")
    finish(root, *TRAIN)
    return root


def steps(root: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (directory(root, "train") / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("name", [pytest.param("SIGTERM", marks=soak), "SIGUSR1"])
def test_training_finishes_its_step_and_writes_a_checkpoint(name: str, straight: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *TRAIN)
    wait_until(lambda: epochs(tmp_path) >= 2, process)
    process.send_signal(getattr(signal, name))
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75
    assert told.splitlines()[-1] == f"nonisotropic: stopped by {name}; the same command goes on from what is complete"
    last = steps(tmp_path)[-1]
    assert not (directory(tmp_path, "train") / "result.json").exists()
    assert f"going on from step {last} of" in finish(tmp_path, *TRAIN)
    assert differences(directory(straight, "train"), directory(tmp_path, "train")) == []


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    inside = tmp_path / "inside_a_step"
    slow = (
        "import sys, time, pathlib; from training.loop import Trainer; "
        f"Trainer._step = lambda *_: (pathlib.Path({str(inside)!r}).touch(), time.sleep(60)); "
        "from cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    process = start(tmp_path, *TRAIN, launcher=["-c"], entry=[slow])
    wait_until(inside.exists, process)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75


def test_an_attack_ends_at_once_and_loses_a_shard_at_most(digits_root, tmp_path: Path) -> None:
    straight, root = (copied(digits_root.root, tmp_path / name) for name in ("straight", "root"))
    finish(straight, *ATTACK, "--quiet")
    process = start(root, *ATTACK)
    shards = lambda: list(directory(root, "test").glob("shards/*.npz"))  # noqa: E731
    wait_until(lambda: len(shards()) >= 1, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert not list(directory(root, "test").rglob(".*")), "nothing half-written, no lock"
    finish(root, *ATTACK, "--quiet")
    assert differences(directory(straight, "test"), directory(root, "test")) == []


def test_all_processes_stop_after_the_same_step(tmp_path: Path) -> None:
    straight, root = tmp_path / "straight", tmp_path / "root"
    finish(straight, *TRAIN, processes=3)  # of more than two numbers, the order of a sum matters
    process = start(root, *TRAIN, launcher=[*TORCHRUN, "--nproc_per_node=3"])
    wait_until(lambda: epochs(root) >= 2, process)
    os.kill(workers(process)[1], signal.SIGUSR1)  # one of them alone
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1  # torchrun's own
    assert "stopped by a signal" in told and "[rank 1]" not in told
    last = steps(root)[-1]
    assert f"going on from step {last} of" in finish(root, *TRAIN, processes=3)
    assert differences(directory(straight, "train"), directory(root, "train")) == []


# On GPUs the host does not wait for sums of gradients: here it runs up to 12 of them ahead, and rank 1 is slower.
AHEAD = """
import collections, os, signal, sys, time
import torch
from torch import distributed
import runners.train.runner as runner
from training.loop import Trainer
rank, queue, wrap, step = int(os.environ["RANK"]), collections.deque(), runner.distributed, Trainer._step
def ahead(state, bucket):
    queue.append(distributed.all_reduce(bucket.buffer().clone(), async_op=True))
    while len(queue) > 12:
        queue.popleft().wait()
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done
def wrapped(*arguments):
    model = wrap(*arguments)
    model.register_comm_hook(None, ahead)
    return model
def slower(self, source, epoch):
    if rank == 1:
        time.sleep(0.05)
        if self.iteration == 12:
            os.kill(os.getpid(), signal.SIGTERM)
    return step(self, source, epoch)
runner.distributed, Trainer._step = wrapped, slower
from cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_processes_whose_devices_are_behind_stop_after_the_same_step(tmp_path: Path) -> None:
    """They came to stop after different steps, and waited for each other or failed without a checkpoint."""
    program = tmp_path / "ahead.py"
    program.write_text(AHEAD)
    words = [*TRAIN, "--training_steps=60it"]
    done = run(tmp_path, *words, processes=2, program=program)
    assert done.returncode and "stopped by a signal" in done.stderr, done.stderr
    assert steps(tmp_path)[-1] == 13
    assert "going on from step 13 of 60" in finish(tmp_path, *words, processes=2)


def test_workers_that_decode_images_are_not_ended_with_the_others(tmp_path: Path) -> None:
    """Slurm signals every process of a job step."""
    from PIL import Image

    for split, count in (("train", 20), ("test", 4)):
        for label in ("a", "b"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (16, 16), (number * 5, 100 * (label == "a"), 0)).save(folder / f"{number}.png")
    words = (
        "train",
        "--dataset_name=image_folder",
        f"--data_dir={tmp_path / 'images'}",
        "--image_size=16",
        "--model_name=conv",
    )
    words = (*words, "--training_steps=200ep", "--batch_size=10", "--num_workers=2")
    process = start(tmp_path / "root", *words)
    wait_until(lambda: epochs(tmp_path / "root") >= 1, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75, told
    shutil.rmtree(tmp_path / "root")


def test_a_process_that_cannot_listen_is_ended_all_the_same() -> None:
    """Inside a call outside Python, such as waiting for a process that has gone, no Python handler runs."""
    deaf = (
        "import sys, foundations.signals as stopping, torch; stopping.PATIENCE = 0.5; image = torch.rand(6000, 6000)\n"
        "with stopping.Stop().listening(): print('ready', flush=True); torch.linalg.eigvals(image)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", deaf], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 75
    assert told == "nonisotropic: stopped by SIGTERM; the same command goes on from what is complete\n"


READS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "weights": ("torch.load", lambda path: read_state_dict(path / "weights.pt")),
    "a model of the zoo": (
        "torch.serialization.safe_globals",
        lambda path: load_zoo_model(SimpleNamespace(files=(), name="", dataset_name="", threat_model=""), None, path),  # type: ignore[arg-type]
    ),
    "the runs of a report": ("foundations.desc.StoredRun.read", lambda path: finished_runs(path, "digits", "train")),
    "a tracker": ("importlib.import_module", lambda path: _imported("wandb")),
    "attacks of a user": (
        "importlib.machinery.SourceFileLoader.exec_module",
        lambda path: imported_attacks(str(path / "attacks.py")),
    ),
    "class weights": ("safetensors.torch.load_file", lambda path: read_matrix(path / "weights.safetensors")),
    "a network for exact answers": ("torch.fx.symbolic_trace", lambda path: Network.read(NETWORK, (1, 2, 2))),
    "a network for certificates": ("torch.fx.symbolic_trace", lambda path: PlainNetwork.read(NETWORK)),
}


@pytest.mark.parametrize("what", READS)
def test_a_request_to_end_is_no_fault_of_what_is_read(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told as a damaged file, and a sweep or a report went on without it."""
    for name in ("weights.pt", "weights.safetensors", "attacks.py"):
        (tmp_path / name).write_text("x = 1")
    run = tmp_path / "runs" / "digits" / "train" / "conv_1" / "replicate_1"
    run.mkdir(parents=True)
    (run / "result.json").write_text("{}")
    place, read = READS[what]
    monkeypatch.setattr(place, lambda *_, **__: (_ for _ in ()).throw(Interrupted("stopped")))
    with pytest.raises(Interrupted):
        read(tmp_path)
