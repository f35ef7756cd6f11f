"""One process at a time makes a run."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from foundations.files import cannot_write

try:
    import fcntl
except ImportError:  # not a POSIX system: runs are not guarded there
    fcntl = None  # type: ignore[assignment]


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
