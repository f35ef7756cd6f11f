"""Download of weight files: resumable, checked, and moved to the final name only when complete."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from foundations.digests import content_digest
from foundations.errors import RunError
from foundations.files import read_json, write_json
from models.checkpoints import what_is_wrong

BLOCK = 1 << 18
TRIES = 3
TIMEOUT = (10, 60)  # seconds to connect, and to wait for the next block
CHECKSUMS = "checksums.json"  # beside the weights: file name -> 12 hex digits of sha256


class Bar(Protocol):
    """The part of a progress bar's interface that is needed here."""

    def update(self, amount: int) -> Any: ...


@dataclass(frozen=True)
class Wanted:
    """A file to download.

    path      final path of the file
    fetch     (unfinished file, bar): completes the file, and continues an earlier download if it can
    by_hand   instructions for a download by hand
    """

    path: Path
    fetch: Callable[[Path, Bar], None]
    by_hand: str


def obtain(wanted: Wanted, bar: Bar) -> str:
    """Download a file if it is missing; returns "there already" or "fetched".

    A file that is not a checkpoint or does not have the recorded checksum is removed; a RunError gives the reason.
    """
    path = wanted.path
    if path.is_file():
        if problem := what_is_wrong(path) or differs(path):
            path.unlink()
            raise RunError(f"{problem}; {path} was removed, run the same command again")
        record(path)
        return "there already"
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted.fetch(part, bar)
    problem = what_is_wrong(part) or _cannot_be_read(part)
    if problem:
        part.unlink(missing_ok=True)
        raise RunError(f"{problem}; it was removed. {wanted.by_hand}")
    expected = _recorded(path.parent).get(path.name)
    if expected is not None and content_digest(str(part))[:12] != expected:
        part.unlink()
        raise RunError(
            f"its content is not what was recorded at the first download ({expected}); it was removed. {wanted.by_hand}"
        )
    os.replace(part, path)
    record(path)
    return "fetched"


def from_url(url: str) -> Callable[[Path, Bar], None]:
    """A download over HTTP, which continues an earlier one and is tried up to TRIES times."""

    def fetch(part: Path, bar: Bar) -> None:
        for attempt in range(1, TRIES + 1):
            time.sleep(attempt - 1)
            problem = _request(url, part, bar)
            if problem is None:
                return
        raise RunError(f"{url}: {problem}; the same command goes on from what came")

    return fetch


def from_drive(identifier: str) -> Callable[[Path, Bar], None]:
    """A download from Google Drive by the package gdown, which handles its confirmation pages."""

    def fetch(part: Path, bar: Bar) -> None:
        import gdown

        try:
            found = gdown.download(id=identifier, output=str(part), quiet=True, resume=part.is_file())
        except Exception as error:  # exceptions of gdown, of requests and of the file system
            raise RunError(f"Google Drive ({identifier}): {_reason(error)}") from error
        if not found:
            raise RunError(f"Google Drive ({identifier}) gave no file")
        bar.update(part.stat().st_size)

    return fetch


def from_folder(folder: Path, names: list[str]) -> Callable[[Path, Bar], None]:
    """A copy of an existing file: the first of some names that exists below a folder."""

    def fetch(part: Path, bar: Bar) -> None:
        source = next((folder / name for name in names if (folder / name).is_file()), None)
        if source is None:
            raise RunError(f"{names[-1]} is not in {folder}, as {' or '.join(names)}")
        shutil.copyfile(source, part)
        bar.update(part.stat().st_size)

    return fetch


def record(path: Path) -> None:
    """Record the checksum of a file, unless one is recorded already."""
    known = _recorded(path.parent)
    if path.name not in known:
        with _locked(path.parent / f".{CHECKSUMS}.lock"):
            write_json(path.parent / CHECKSUMS, {**_recorded(path.parent), path.name: content_digest(str(path))[:12]})


def verify(path: Path) -> str | None:
    """The problem with a file that should exist and have a recorded checksum; None if there is no problem."""
    return what_is_wrong(path) or differs(path) or (None if _recorded(path.parent).get(path.name) else "no checksum")


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder for the duration of a block; raises RunError if another process downloads into it.

    The lock is released at the latest when its process ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".download.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another download_pretrained is at work in {folder}; wait until it has ended") from None
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock for the duration of a block; waits for other threads and processes that hold it."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _recorded(folder: Path) -> dict[str, str]:
    file = folder / CHECKSUMS
    return read_json(file) if file.is_file() else {}


def differs(path: Path) -> str | None:
    """The problem if a file has not the content that was recorded when it was fetched; None without a record."""
    expected = _recorded(path.parent).get(path.name)
    if expected is None or (found := content_digest(str(path))[:12]) == expected:
        return None
    return f"its checksum is {found}, {expected} was recorded when it was fetched"


def _cannot_be_read(path: Path) -> str | None:
    """Read a whole checkpoint, to detect an incomplete file at once; returns the problem, or None."""
    import torch

    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # torch, pickle and zip raise different exceptions
        reason = _reason(error)
        # A file with other objects than tensors is complete; whether they are allowed is checked when it is loaded.
        return None if "Unsupported global" in reason else "it is no whole checkpoint of PyTorch"
    return None


def _request(url: str, part: Path, bar: Bar) -> str | None:
    """Try to download once; returns None on success, else a problem that may be temporary.

    Raises RunError for a problem that is permanent.
    """
    try:
        return _stream(url, part, bar)
    except OSError as error:  # includes all exceptions of requests
        return _reason(error)


def _stream(url: str, part: Path, bar: Bar) -> str | None:
    import requests

    start = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # the range is empty: the unfinished file is complete
            return None
        if answer.status_code in (403, 404, 410):
            raise RunError(f"{url}: the server answers {answer.status_code} {answer.reason}")
        answer.raise_for_status()
        goes_on = answer.status_code == 206
        # A connection that ends early must not raise an error, so that the received part is kept; its length is checked
        # below.
        answer.raw.enforce_content_length = False
        bar.update(start if goes_on else 0)
        expected = int(answer.headers.get("Content-Length", 0)) + (start if goes_on else 0)
        with open(part, "ab" if goes_on else "wb") as file:
            for block in answer.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))
    if expected and part.stat().st_size < expected:
        return f"the connection ended after {part.stat().st_size} of {expected} bytes"
    return None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    offline = ("NameResolution", "Failed to resolve", "Name or service", "unreachable", "Connection refused")
    return "no connection (offline?)" if any(sign in text for sign in offline) else text[:300]
