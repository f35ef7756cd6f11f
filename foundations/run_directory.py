"""The directory of a run: its files, its lock, and the condition for completeness."""

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
except ImportError:  # not a POSIX system: runs are not locked there
    fcntl = None  # type: ignore[assignment]

WORKING = ("shards", "classes")  # folders with the finished parts of an incomplete run
LOCK = ".lock"  # lock file in a run's directory; other names that begin with a dot are temporary


class RunDirectory:
    """Paths and files of one run. The run is complete if result.json exists, which is written last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def is_complete(self) -> bool:
        return (self / "result.json").is_file()

    def open(self, hparams: dict[str, Any]) -> None:
        """Create the directory and write hparams.json, which records what was hashed, and on which devices it is made.

        Removes temporary files that a killed process left half-written. Call only while no other process writes there.
        """
        self._remove_temporary_files()
        write_json(self / "hparams.json", hparams)

    def devices(self) -> list[str]:
        """The devices on which the parts that are there were made, first to last, by hparams.json; [] if unknown."""
        if not any((self / name).is_dir() for name in (*WORKING, "checkpoints")):
            return []
        try:
            told = read_json(self / "hparams.json")["devices"]
        except (RunError, KeyError, TypeError):
            return []
        return [str(name) for name in told] if isinstance(told, list) else []

    def result(self) -> dict[str, Any]:
        """The content of result.json; raises RunError if it was edited."""
        file = self / "result.json"
        result = read_json(file)
        if not is_intact(result):
            raise RunError(
                f"{file} was edited, damaged or written by an earlier version: its checksum does not fit its content; "
                "remove it and run again"
            )
        return result

    def check(self) -> None:
        """Raise RunError if the directory was removed during the run, since its earlier content would be missing."""
        if not (self / "hparams.json").is_file():
            raise RunError(f"{self.path} was removed while it was written; the same command starts again")

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, which makes the run complete."""
        self.check()
        write_json(self / "result.json", sealed(result))

    def tidy(self) -> None:
        """Remove what only an interrupted run needs, after the result is written.

        Call only while no other process writes there.
        """
        for name in WORKING:
            shutil.rmtree(self / name, ignore_errors=True)
        self._remove_temporary_files()

    def tidy_after_a_kill(self) -> None:
        """Tidy a complete run whose process was killed before it could do so."""
        if not any((self / name).exists() for name in (LOCK, *WORKING)):
            return
        lock = Lock(self / LOCK)
        with contextlib.suppress(OSError, RunError):  # in a read-only folder the files stay
            if not lock.acquire():
                self.tidy()
        lock.release()

    def _remove_temporary_files(self) -> None:
        for path in list(self.path.rglob(".*")):
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def write_examples(self, arrays: dict[str, Any]) -> None:
        """Write examples.npz: per-example arrays, one row per example, in data set order."""
        write_npz(self / "examples.npz", arrays)


class Lock:
    """A file that names host and process, held by a lock of the operating system.

    The system releases the lock when the process ends, for whatever reason, also for other hosts that share the folder.
    So the file of a killed process blocks no one, and no timeout is needed. On a file system without locks, nothing is
    locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self) -> str:
        """Take the lock. Returns "" on success, else a description of the process that holds it."""
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
            os.close(file)  # the holder finished and removed the file between the two calls
        os.truncate(file, 0)
        os.pwrite(file, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
        self._file = file
        return ""

    def release(self) -> None:
        """Release the lock and remove its file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                if _is_at(self._file, self.path):
                    os.unlink(self.path)
            os.close(self._file)
            self._file = None


def _is_at(file: int, path: Path) -> bool:
    """Check whether an open file is the one at a path."""
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
