"""Commands in processes of their own, which tests then stop, kill or starve."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.fork_server import PROGRAM, PROJECT, fork_server

# What takes long, or waits long, beside a quicker test of the same.
soak = pytest.mark.skipif(not os.environ.get("NONISOTROPIC_SOAK"), reason="make soak")

TORCHRUN = ("-m", "torch.distributed.run", "--nnodes=1", "--standalone")
CLOCKS = ("wall_seconds", "resumed", "environment")
UNEQUAL = ("timing.jsonl", "result.json", "hparams.json")  # clocks; compared without them, or by their own tests


def variables(root: Path) -> dict[str, str]:
    """Of a command that writes below a root."""
    return {**os.environ, "NONISOTROPIC_HOME": str(root), "OMP_NUM_THREADS": "1"}


def start(root: Path, *words: str, launcher: Sequence[str] = (), entry: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Begin a command; `launcher` are words for the interpreter before it, `entry` what stands for nonisotropic.py."""
    return subprocess.Popen(
        [sys.executable, *launcher, *(entry or [str(PROGRAM)]), *words],
        env=variables(root),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(root: Path, *words: str, processes: int = 0, program: Path = PROGRAM) -> subprocess.CompletedProcess[str]:
    """Run a command, in a process or in several, to its end."""
    return fork_server().run(words, variables(root), PROJECT, processes, program)


def finish(root: Path, *words: str, processes: int = 0, program: Path = PROGRAM) -> str:
    """Run a command to its end, demand success, return what it said."""
    done = run(root, *words, processes=processes, program=program)
    assert done.returncode == 0, done.stderr
    return done.stderr


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Until something holds, while the process lives."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        assert time.monotonic() < until, "it did not get so far"
        time.sleep(0.01)


def directory(root: Path, runner: str) -> Path:
    """Of the only run of a runner below a root, where there is one by now."""
    found = list((root / "runs").glob(f"*/{runner}/*/replicate_1"))
    return found[0] if found else root / "no run yet"


def epochs(root: Path) -> int:
    """The number of epochs that the only training run below a root has recorded."""
    file = directory(root, "train") / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def workers(launcher: subprocess.Popen[str]) -> list[int]:
    """Process numbers of torchrun's workers, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # one that has just ended
            if f"PPid:\t{launcher.pid}\n" in (folder / "status").read_text():
                variables = (folder / "environ").read_bytes().split(b"\0")
                found |= {int(word[5:]): int(folder.name) for word in variables if word.startswith(b"RANK=")}
    return [found[rank] for rank in sorted(found)]


def kill_session(process: subprocess.Popen[str]) -> None:
    """kill -9 a command with all that it started; torchrun's workers have sessions of their own."""
    for number in workers(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout and not process.stdout.closed:
        process.communicate()


def copied(root: Path, to: Path) -> Path:
    """A root of its own, with what is in another."""
    return Path(shutil.copytree(root, to))


def differences(straight: Path, other: Path) -> list[str]:
    """Files of two runs' directories that are not the same bytes, or are in one alone; temporary ones too."""
    names = {
        str(path.relative_to(side))
        for side in (straight, other)
        for path in side.rglob("*")
        if path.is_file() and path.name not in UNEQUAL and "checkpoints" not in path.parts
    }
    return sorted(
        name
        for name in names
        if not ((straight / name).is_file() and (other / name).is_file())
        or (straight / name).read_bytes() != (other / name).read_bytes()
    )
