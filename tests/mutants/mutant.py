"""A fault, and whether tests notice it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """A fault: in a file `before`, which stands there once, becomes `after`; the tests that should notice."""

    name: str
    file: str
    before: str
    after: str
    tests: str


def survives(mutant: Mutant) -> bool:
    """True when its tests pass all the same."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        files = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True)
        for name in files.stdout.split("\0")[:-1]:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, copy / name)
        text = (copy / mutant.file).read_text()
        (copy / mutant.file).write_text(text.replace(mutant.before, mutant.after))
        words = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", *mutant.tests.split()]
        return subprocess.run([sys.executable, "-m", "pytest", *words], cwd=copy, capture_output=True).returncode == 0
