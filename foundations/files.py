"""Atomic writes, so that a reader sees either no file or the whole file; and reads of JSON."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from foundations.errors import RunError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: under a temporary name in the same folder, then rename it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def write_folder(path: Path, contents: dict[str, bytes]) -> None:
    """Write a folder of files under a temporary name, then rename it; replaces an existing folder."""
    temporary = path.parent / f".{path.name}.part"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            for name, content in contents.items():
                write_bytes(temporary / name, content)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text with `write_bytes`."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with `write_bytes`; NaN raises ValueError."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write named NumPy arrays with `write_bytes`; equal content gives equal bytes."""
    import numpy

    buffer = io.BytesIO()
    numpy.savez(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises RunError, with the path, if it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: {error}; remove it and run again") from error


def cannot_write(path: Path, error: OSError) -> RunError:
    """The error for a folder or file that cannot be written."""
    return RunError(
        f"cannot write {path}: {error.strerror}; choose a writable place with --root_dir or NONISOTROPIC_HOME"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
