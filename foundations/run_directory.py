"""The directory a run owns: what is in it, and when the run counts as complete."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

from foundations.errors import RunError
from foundations.files import cannot_write, read_json, write_json, write_npz
from foundations.results import is_intact, sealed

try:
    import fcntl
except ImportError:  # not a POSIX system: runs are not guarded there
    fcntl = None  # type: ignore[assignment]

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
        """The content of result.json; one that was edited is refused."""
        file = self / "result.json"
        result = read_json(file)
        if not is_intact(result):
            raise RunError(
                f"{file} was edited, damaged or written by an earlier version: its checksum does not fit its content; "
                "remove it and run again"
            )
        return result

    def check(self) -> None:
        """Refuse to go on in a directory that somebody removed: what was in it is missing from what follows."""
        if not (self / "hparams.json").is_file():
            raise RunError(f"{self.path} was removed while it was written; the same command starts again")

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: from now on the run is complete."""
        self.check()
        write_json(self / "result.json", sealed(result))

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


class Lock:
    """A file that names host and process, held by a lock of the operating system.

    The system gives the lock up when the process ends, however it ends, also for other hosts of a shared folder: a file
    that is left of a killed process locks nobody out, and no clock decides. Where a file system knows no locks,
    there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self) -> str:
        """Take it. Returns who holds it instead, for people, or "" when we do."""
        if fcntl is None:
            return ""
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise cannot_write(self.path, error) from error
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                holder = _holder(file)
                os.close(file)
                return holder
            except OSError:
                os.close(file)
                return ""
            if _is_at(file, self.path):
                break
            os.close(file)  # its holder finished, and removed it, between our two calls
        os.truncate(file, 0)
        os.pwrite(file, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
        self._file = file
        return ""

    def release(self) -> None:
        """Let others have it; leaves no file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                if _is_at(self._file, self.path):
                    os.unlink(self.path)
            os.close(self._file)
            self._file = None


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that a path names."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def _holder(file: int) -> str:
    try:
        told: Any = json.loads(os.pread(file, 1000, 0))
        return f"process {int(told['process'])} on {str(told['host'])[:100]}"
    except (ValueError, KeyError, TypeError, OSError):
        return "another process"
