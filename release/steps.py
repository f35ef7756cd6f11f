"""Parts that all steps of a release share: a failure, a command that must succeed, and a line with its time."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TAIL = 3000  # characters of the output of a command that failed
OURS_ALONE = ("PYTHONPATH", "PYTHONHOME", "NONISOTROPIC_HOME", "VIRTUAL_ENV")


class ReleaseError(Exception):
    """A reason against a release, in words."""


def run(words: Sequence[str | Path], cwd: Path, **variables: str) -> str:
    """The output of a command that must succeed, in an environment that names no folder of ours."""
    inherited = {name: value for name, value in os.environ.items() if name not in OURS_ALONE}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1", **variables}
    command = [str(word) for word in words]
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise ReleaseError(f"exit code {done.returncode} of {' '.join(command)[:200]}\n{done.stdout[-TAIL:]}")
    return done.stdout


@contextmanager
def step(name: str) -> Iterator[list[str]]:
    """A block whose name, time and figures (appended to what it is given) are printed when it is done."""
    start, figures = time.monotonic(), list[str]()
    yield figures
    print(f"  {time.monotonic() - start:6.1f} s  {name}{': ' * bool(figures)}{', '.join(figures)}", flush=True)
