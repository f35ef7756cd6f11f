"""The directory a run owns: what is in it, and when the run counts as complete."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from foundations.errors import RunError
from foundations.files import read_json, write_json, write_npz
from foundations.lock import Lock
from foundations.result_shapes import misfit

WORKING = ("shards", "classes")  # folders of finished parts of a run that is not
LOCK = ".lock"  # in a run's directory; other names that begin with a dot are temporary


class RunDirectory:
    """Paths and files of one run. Completion is the presence of result.json, which is written last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def is_complete(self) -> bool:
        return (self / "result.json").is_file()

    def open(self, hparams: dict[str, Any]) -> None:
        """Create the directory and say in hparams.json what was hashed; only where nobody else writes in it.

        What a killed process left half-written under a temporary name goes.
        """
        self._remove_temporary_files()
        write_json(self / "hparams.json", hparams)

    def result(self) -> dict[str, Any]:
        """The content of result.json; one that no runner wrote is refused."""
        file = self / "result.json"
        result = read_json(file)
        if problem := misfit(result, self.path.parent.parent.name):
            raise RunError(f"{file} was edited or damaged ({problem}); remove it and run again")
        return result

    def check(self) -> None:
        """Refuse to go on in a directory that somebody removed: what was in it is missing from what follows."""
        if not (self / "hparams.json").is_file():
            raise RunError(f"{self.path} was removed while it was written; the same command starts again")

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: from now on the run is complete."""
        self.check()
        write_json(self / "result.json", result)

    def tidy(self) -> None:
        """Remove what served an interrupted run, once the result is written; only where nobody else writes."""
        for name in WORKING:
            shutil.rmtree(self / name, ignore_errors=True)
        self._remove_temporary_files()

    def tidy_after_a_kill(self) -> None:
        """The same for a complete run whose process was killed before it could."""
        if not any((self / name).exists() for name in (LOCK, *WORKING)):
            return
        lock = Lock(self / LOCK)
        with contextlib.suppress(OSError, RunError):  # in a folder that we may only read, it stays
            if not lock.acquire():
                self.tidy()
        lock.release()

    def _remove_temporary_files(self) -> None:
        for path in list(self.path.rglob(".*")):
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def write_examples(self, arrays: dict[str, Any]) -> None:
        """Per-example arrays: one row per example, in data set order."""
        write_npz(self / "examples.npz", arrays)
