"""Sections that run commands as a user does, in processes of their own, on scikit-learn's digits."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.gpu.bench import PROJECT, Bench

DATA = "--dataset_name=digits"
ADVERSARIES = ("--N_adv_train", "--N_adv_train_attack_iter=2")
ATTACKED = ("--N_adv_eval", "--num_examples=20", "--N_attack_iter=2", "--attacks=apgd_ce")
UNATTACKED = ("--standard_eval",)  # needs no anchors
LAUNCHER = ("-m", "torch.distributed.run", "--nnodes=1", "--standalone")
MARKED = "tests/threat_specification/projected_displacement/test_anchor_matrix.py"
PD = "projected_displacement"
MATHEMATICS = (
    "test_norms",
    "test_intersection",
    f"{PD}/test_projection",
    f"{PD}/test_fixed_shapes",
    f"{PD}/test_threat",
    "attacks/test_attacks",
)
AT_MOST = 150.0  # seconds of one command


@contextmanager
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="gpu_pass_"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _run(bench: Bench, case: str, words: Sequence[str], root: Path, processes: int = 0) -> None:
    """Run a command; raises RuntimeError with what it said if it fails."""
    launcher = [*LAUNCHER, f"--nproc_per_node={processes}"] if processes else []
    device = bench.device.type if processes else str(bench.device)
    command = [sys.executable, *launcher, "nonisotropic.py", *words, f"--root_dir={root}", f"--device={device}"]
    start = time.perf_counter()
    limit = max(30.0, min(AT_MOST, bench.left()))
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=limit)
    if done.returncode:
        raise RuntimeError(f"{case}: exit code {done.returncode}: {done.stderr[-400:]}")
    bench.tell(f"{case}: whole command", time.perf_counter() - start, "s")


def _digests(root: Path, runner: str, name: str) -> list[str]:
    """Digests of the files of this name in the runs of a runner."""
    files = sorted((root / "runs" / "digits" / runner).rglob(name))
    assert files, f"no {name} of {runner} below {root}"
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def _model(bench: Bench) -> tuple[str, ...]:
    """The flags of a training run."""
    return (DATA, bench.sized("--model_name=resnet_8", "--model_name=conv"), "--training_steps=2ep", "--lr=0.05")


def commands(bench: Bench) -> None:
    """Anchors; training twice; training again from its first checkpoint; an evaluation twice."""
    model = (*_model(bench), *ADVERSARIES)
    with _folder() as home:
        first, second = home / "first", home / "second"
        _run(bench, "compute_threat", ("compute_threat", DATA), first)
        shutil.copytree(first, second)
        _run(bench, "train", ("train", *model), first)
        _run(bench, "train again", ("train", *model), second)
        weights = _digests(first, "train", "model.safetensors")
        bench.tell("training twice: equal", weights == _digests(second, "train", "model.safetensors"), aim="True")
        _unfinish(second)
        _run(bench, "train from a checkpoint", ("train", *model), second)
        bench.tell("training resumed: equal", weights == _digests(second, "train", "model.safetensors"), aim="True")
        if bench.tiny:
            return
        _run(bench, "test", ("test", *model, *ATTACKED), first)
        _run(bench, "test again", ("test", *model, *ATTACKED), second)
        found = [_digests(root, "test", "examples.npz") for root in (first, second)]
        bench.tell("evaluation twice: equal", found[0] == found[1], aim="True")


def _unfinish(root: Path) -> None:
    """Make a finished training run look like one that ended after its first checkpoint."""
    (result,) = (root / "runs" / "digits" / "train").rglob("result.json")
    steps = sorted((result.parent / "checkpoints").glob("step_*"))
    if len(steps) < 2:
        raise RuntimeError(f"expected two checkpoints or more to go on from the first, got {len(steps)}")
    for folder in steps[1:]:
        shutil.rmtree(folder)
    result.unlink()
    (result.parent / "model.safetensors").unlink()


def torchrun(bench: Bench) -> None:
    """An evaluation with one process a GPU against one process alone; and with anchors divided over the processes."""
    processes = torch.cuda.device_count() if bench.is_cuda else 2
    model, evaluation = _model(bench), bench.sized(ATTACKED, UNATTACKED)
    with _folder() as home:
        alone, together = home / "alone", home / "together"
        if not bench.tiny:
            _run(bench, "compute_threat", ("compute_threat", DATA), alone)
        _run(bench, "train", ("train", *model), alone)
        shutil.copytree(alone, together)
        _run(bench, "test, one process", ("test", *model, *evaluation), alone)
        _run(bench, f"test, {processes} under torchrun", ("test", *model, *evaluation), together, processes)
        found = [_digests(root, "test", "examples.npz") for root in (alone, together)]
        bench.tell(f"evaluation on {processes} and on one: equal", found[0] == found[1], aim="True")
        if bench.tiny:
            return
        divided = ("test", *model, *evaluation, "--test_replicate=2", "--shard_anchors")
        _run(bench, f"test, anchors over {processes} processes", divided, together, processes)
        for file in sorted((together / "runs" / "digits" / "test").rglob("result.json")):
            accuracy = json.loads(file.read_text())["N_adv"]["accuracy"]
            bench.tell(f"accuracy of {file.parent.name}", float(accuracy))


def tests(bench: Bench) -> None:
    """The tests that need a CUDA device; then those of the mathematics with the device as torch's default."""
    base = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    done = _pytest(bench, [*base, "-m", "cuda", bench.sized("tests", MARKED)])
    bench.tell("tests marked cuda", _last(done))
    if done.returncode not in (0, 5):  # 5: none was collected
        raise RuntimeError(f"tests marked cuda: {done.stdout[-400:]}")
    files = [f"tests/threat_specification/{name}.py" for name in bench.sized(MATHEMATICS, ("test_norms",))]
    options = [f"--on-device={bench.device.type}", "-o", "filterwarnings=default", "--tb=line"]
    done = _pytest(bench, [*base, *options, *files])
    bench.tell(f"tests of the mathematics with torch's default device {bench.device.type}", _last(done))
    for line in done.stdout.splitlines():
        if line.startswith("FAILED"):
            bench.tell("not passed with that default device", line[len("FAILED ") :][:140])


def _pytest(bench: Bench, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(PROJECT)}
    limit = max(30.0, min(AT_MOST, bench.left()))
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=limit, env=variables)


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stdout.splitlines() if " in " in line]
    return lines[-1].strip("= ") if lines else f"exit code {done.returncode}"
