"""Places that runs are written to: shared, full, read-only, removed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foundations.errors import RunError
from foundations.run_directory import Lock, RunDirectory
from tests.faults.processes import (
    PROJECT,
    copied,
    differences,
    directory,
    epochs,
    finish,
    kill_session,
    soak,
    start,
    wait_until,
)
from tests.fork_server import fork_server

TRAIN = ("train", "--dataset_name=digits", "--model_name=conv", "--training_steps=12ep", "--checkpoint_minutes=0")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which training went through undisturbed."""
    root = tmp_path_factory.mktemp("straight")
    finish(root, *TRAIN)
    return root


def test_the_same_command_twice_at_once_runs_once(straight: Path, tmp_path: Path) -> None:
    first = start(tmp_path, *TRAIN)
    wait_until(lambda: epochs(tmp_path) >= 1, first)
    first.send_signal(signal.SIGSTOP)  # it holds its lock, however long it stands still
    second = start(tmp_path, *TRAIN)
    _, told = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"process {first.pid} on {socket.gethostname()} is making this run; wait for it, or stop it: /" in told
    kill_session(first)
    left = directory(tmp_path, "train") / ".lock"
    assert json.loads(left.read_text())["process"] == first.pid
    finish(tmp_path, *TRAIN)  # the lock of a killed process locks nobody out
    assert not left.exists()
    assert differences(directory(straight, "train"), directory(tmp_path, "train")) == []


def test_locks_are_of_one_process_at_a_time(tmp_path: Path) -> None:
    """Processes that all count up one number, without a lost count."""
    count = tmp_path / "count"
    count.write_text("0")
    program = (
        "import sys, time, pathlib; from foundations.run_directory import Lock\n"
        "lock, count = Lock(pathlib.Path(sys.argv[1]) / 'run/.lock'), pathlib.Path(sys.argv[1]) / 'count'\n"
        "for _ in range(60):\n"
        "    while lock.acquire(): time.sleep(0.0005)\n"
        "    number = int(count.read_text()); time.sleep(0.0005); count.write_text(str(number + 1)); lock.release()\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=PROJECT) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    assert count.read_text() == "240"
    assert not (tmp_path / "run/.lock").exists()


def test_a_lock_on_a_file_that_its_holder_has_just_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foundations import run_directory as module

    path, real, calls = tmp_path / ".lock", fcntl.lockf, []

    def removed_meanwhile(file: int, how: int) -> None:
        calls.append(file)
        if len(calls) == 1:
            path.unlink()
        real(file, how)

    monkeypatch.setattr(module.fcntl, "lockf", removed_meanwhile)
    lock = Lock(path)
    assert lock.acquire() == "" and len(calls) == 2
    assert json.loads(path.read_text())["process"] == os.getpid()
    lock.release()
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "no json", '{"host": 3}', "[1]", '{"host": "h", "process": "x"}'])
def test_a_lock_with_strange_content_is_still_one(content: str, tmp_path: Path) -> None:
    program = (
        "import os, sys; from foundations.run_directory import Lock; from pathlib import Path\n"
        "lock = Lock(Path(sys.argv[1])); lock.acquire()\n"
        "os.truncate(lock._file, 0); os.pwrite(lock._file, sys.argv[2].encode(), 0)\n"
        "print('held', flush=True); input()"
    )
    words = [sys.executable, "-c", program, str(tmp_path / ".lock"), content]
    holder = subprocess.Popen(words, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert Lock(tmp_path / ".lock").acquire() == "another process"
    holder.communicate("\n")
    lock = Lock(tmp_path / ".lock")
    assert lock.acquire() == ""
    lock.release()


def _unmeasured() -> dict[str, str]:
    """Without what makes coverage follow into a process, where it would write large files too."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")}


# A command that may write no file of more bytes than this.
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
from cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "runner, largest",
    [
        ("train", 20_000),
        ("test", 6_000),
        pytest.param("compute_threat", 20_000, marks=soak),
        pytest.param("evaluate_threat", 20_000, marks=soak),
    ],
)
def test_where_nothing_more_can_be_written_nothing_is_half_written(
    runner: str, largest: int, digits_root, tmp_path: Path
) -> None:
    words = {
        "train": TRAIN,
        "compute_threat": ("compute_threat", "--dataset_name=digits", "--per_label=40"),
        "test": ("test", "--dataset_name=digits", "--model_name=conv", "--training_steps=3ep", "--standard_eval"),
        "evaluate_threat": ("evaluate_threat", "--dataset_name=digits", "--per_label=10", "--num_examples=100"),
    }[runner]
    root = copied(digits_root.root, tmp_path / "root")
    for made in (root / "runs/digits").glob(f"{runner}/*"):
        shutil.rmtree(made)
    (program := tmp_path / "limited.py").write_text(LIMITED.format(largest))
    limited = fork_server().run(
        words, {**_unmeasured(), "NONISOTROPIC_HOME": str(root), "OMP_NUM_THREADS": "1"}, PROJECT, program=program
    )
    assert limited.returncode == 1, limited.stderr
    last = limited.stderr.strip().splitlines()[-1]
    assert last.startswith("nonisotropic: cannot write ") and "File too large; choose a writable place" in last
    (made,) = (root / "runs/digits" / runner).glob("*/replicate_1")
    assert not (made / "result.json").exists()
    assert not list(made.rglob(".*")), "nothing half-written, no lock"
    finish(root, *words)
    assert (made / "result.json").exists()


def test_a_directory_removed_meanwhile_is_told_and_made_again(straight: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *TRAIN)
    wait_until(lambda: epochs(tmp_path) >= 1, process)
    place = directory(tmp_path, "train")
    shutil.rmtree(place, ignore_errors=True)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{place} was removed while it was written; the same command starts again" in told
    finish(tmp_path, *TRAIN)
    assert differences(directory(straight, "train"), place) == []


def test_a_result_is_not_written_where_hparams_are_missing(tmp_path: Path) -> None:
    made = RunDirectory(tmp_path / "run")
    made.open({"a": 1})
    (made / "hparams.json").unlink()
    with pytest.raises(RunError, match="was removed while it was written"):
        made.finish({})
    assert not made.is_complete


@soak
def test_a_clock_that_jumps_changes_nothing(straight: Path, tmp_path: Path) -> None:
    """Wall-clock time goes back a day between any two looks at it."""
    jumping = (
        "import sys, time, itertools; clock = itertools.count(2_000_000_000, -86_400)\n"
        "time.time = lambda: next(clock)\n"
        "from cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    process = start(tmp_path, *TRAIN, launcher=["-c"], entry=[jumping])
    wait_until(lambda: epochs(tmp_path) >= 2, process)
    for path in directory(tmp_path, "train").rglob("*"):
        if path.exists():
            os.utime(path, (time.time() + 9e6,) * 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finish(tmp_path, *TRAIN)
    assert differences(directory(straight, "train"), directory(tmp_path, "train")) == []


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    made = RunDirectory(tmp_path / "run")
    left = [
        tmp_path / "run/.metrics.jsonl.x1",
        tmp_path / "run/checkpoints/.step_1.part/.state.pt.y",
        tmp_path / "run/.lock",
    ]
    for path in (*left, tmp_path / "run/shards/000000.npz"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    made.open({})
    assert sorted(path.name for path in made.path.rglob("*") if path.is_file()) == [
        ".lock",
        "000000.npz",
        "hparams.json",
    ]
    assert not (made / "checkpoints/.step_1.part").exists()


def test_a_complete_run_whose_process_was_killed_is_tidied(digits_root, tmp_path: Path) -> None:
    root = copied(digits_root.root, tmp_path / "root")
    made = directory(root, "compute_threat")
    (made / "classes").mkdir()
    (made / "classes/0.json").write_text("{}")
    (made / ".lock").write_text("{}")
    before = [path for path in digits_root.root.rglob("*") if "compute_threat" in path.parts]
    finish(root, "compute_threat", "--dataset_name=digits", "--per_label=10")
    assert len([path for path in root.rglob("*") if "compute_threat" in path.parts]) == len(before)
    assert not (made / ".lock").exists() and (made / "result.json").exists()
