"""Fetching files of weights: resumed, checked, and moved into place only when whole."""

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

from foundations.errors import RunError
from foundations.files import file_digest, read_json, write_json
from models.checkpoints import what_is_wrong

BLOCK = 1 << 18
TRIES = 3
TIMEOUT = (10, 60)  # seconds to connect, and between blocks
CHECKSUMS = "checksums.json"  # beside the weights: file name -> 12 hex digits of sha256


class Bar(Protocol):
    """What a progress bar must take."""

    def update(self, amount: int) -> Any: ...


@dataclass(frozen=True)
class Wanted:
    """One file.

    path      where it belongs
    fetch     (unfinished file, bar): goes on with the file where it ends, and leaves it whole
    by_hand   how a person gets it
    """

    path: Path
    fetch: Callable[[Path, Bar], None]
    by_hand: str


def obtain(wanted: Wanted, bar: Bar) -> str:
    """ "there already" or "fetched"; a file that is no checkpoint is removed, and the error says what it was."""
    path = wanted.path
    if path.is_file():
        if problem := what_is_wrong(path) or _differs(path):
            path.unlink()
            raise RunError(f"{path.name}: {problem}; the file was removed, run the same command again")
        record(path)
        return "there already"
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted.fetch(part, bar)
    problem = what_is_wrong(part) or _cannot_be_read(part)
    if problem:
        part.unlink(missing_ok=True)
        raise RunError(f"{path.name}: {problem}; it was removed. {wanted.by_hand}")
    expected = _recorded(path.parent).get(path.name)
    if expected is not None and file_digest(part) != expected:
        part.unlink()
        raise RunError(
            f"{path.name}: its content is not what was recorded at the first download ({expected}); it was removed. "
            f"{wanted.by_hand}"
        )
    os.replace(part, path)
    record(path)
    return "fetched"


def from_url(url: str) -> Callable[[Path, Bar], None]:
    """Over HTTP, going on where an earlier try ended."""

    def fetch(part: Path, bar: Bar) -> None:
        for attempt in range(1, TRIES + 1):
            time.sleep(attempt - 1)
            problem = _request(url, part, bar)
            if problem is None:
                return
        raise RunError(f"{url}: {problem}; the same command goes on from what came")

    return fetch


def from_drive(identifier: str) -> Callable[[Path, Bar], None]:
    """From Google Drive, by the package gdown, which knows its detours."""

    def fetch(part: Path, bar: Bar) -> None:
        import gdown

        try:
            found = gdown.download(id=identifier, output=str(part), quiet=True, resume=part.is_file())
        except Exception as error:  # gdown's own, those of requests, and of the file system
            raise RunError(f"Google Drive ({identifier}): {_reason(error)}") from error
        if not found:
            raise RunError(f"Google Drive ({identifier}) gave no file")
        bar.update(part.stat().st_size)

    return fetch


def from_folder(folder: Path, names: list[str]) -> Callable[[Path, Bar], None]:
    """A copy of a file that is there already, by the first of some names below a folder."""

    def fetch(part: Path, bar: Bar) -> None:
        source = next((folder / name for name in names if (folder / name).is_file()), None)
        if source is None:
            raise RunError(f"{names[-1]} is not in {folder}, as {' or '.join(names)}")
        shutil.copyfile(source, part)
        bar.update(part.stat().st_size)

    return fetch


def record(path: Path) -> None:
    """Keep the checksum of a file, unless there is one."""
    known = _recorded(path.parent)
    if path.name not in known:
        with _locked(path.parent / f".{CHECKSUMS}.lock"):
            write_json(path.parent / CHECKSUMS, {**_recorded(path.parent), path.name: file_digest(path)})


def verify(path: Path) -> str | None:
    """What is wrong with a file that should be there; None when nothing is."""
    return what_is_wrong(path) or _differs(path) or (None if _recorded(path.parent).get(path.name) else "no checksum")


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep a second process from fetching into the same folder; the lock ends with the process that has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".download.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another download_pretrained is at work in {folder}; wait until it has ended") from None
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for the other threads of ours that write a file."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _recorded(folder: Path) -> dict[str, str]:
    file = folder / CHECKSUMS
    return read_json(file) if file.is_file() else {}


def _differs(path: Path) -> str | None:
    expected = _recorded(path.parent).get(path.name)
    if expected is None or (found := file_digest(path)) == expected:
        return None
    return f"its checksum is {found}, {expected} was recorded when it was fetched"


def _cannot_be_read(path: Path) -> str | None:
    """A whole read of a checkpoint, so that one that was cut short in the middle is found now."""
    import torch

    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # torch, pickle and zip all have their own
        reason = _reason(error)
        # A whole file that holds more than tensors: whether it can be used is seen when it is.
        return None if "Unsupported global" in reason else f"it is no whole checkpoint ({reason[:120]})"
    return None


def _request(url: str, part: Path, bar: Bar) -> str | None:
    """One try; what went wrong in a way that may be over in a moment."""
    try:
        return _stream(url, part, bar)
    except OSError as error:  # those of requests too
        return _reason(error)


def _stream(url: str, part: Path, bar: Bar) -> str | None:
    import requests

    start = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # nothing is left: the unfinished file was whole
            return None
        if answer.status_code in (403, 404, 410):
            raise RunError(f"{url}: the server answers {answer.status_code} {answer.reason}")
        answer.raise_for_status()
        goes_on = answer.status_code == 206
        answer.raw.enforce_content_length = False  # what came before the connection ended is kept; we count ourselves
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
