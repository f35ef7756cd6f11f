"""Digests of files and of sets of files, and the list of the files of a folder.

A set has the digest of its names and contents: moved, copied or linked it keeps it, and one changed byte changes it.
Contents are read once: the digests of a set's files are kept in a cache of the user, by path, size, times of change (of
the content and of the file) and number of the file (inode).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from foundations.errors import RunError
from foundations.files import write_text

# Made by file managers beside other files; names that begin with a dot are hidden too.
HIDDEN = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")
SETTLED = 2.0  # seconds after a change before a file's time of change is trusted: file systems count it in steps


def is_hidden(name: str) -> bool:
    """True for files and folders that nobody means when they name a folder of images."""
    return name.startswith(".") or name in HIDDEN


def files_below(folder: Path | str) -> list[str]:
    """Paths of all files below a folder, sorted by folder, then by name.

    Links are followed, but not into a folder that contains them. Hidden files and folders are left out.
    """
    found = sorted(_walk(os.fspath(folder), frozenset()))
    return [os.path.join(place, name) for place, names in found for name in names]


def _walk(folder: str, above: frozenset[str]) -> Iterator[tuple[str, list[str]]]:
    """Each folder with the sorted names of its files; `above` has the real paths of the folders that contain it."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        shown = [(entry.name, entry.is_dir()) for entry in entries if not is_hidden(entry.name)]
    yield folder, sorted(name for name, is_folder in shown if not is_folder)
    for name, is_folder in shown:
        if is_folder:
            yield from _walk(os.path.join(folder, name), above | {real})


def file_digest(path: Path | str) -> str:
    """The first 12 hex digits of the SHA-256 of a file's content; of a folder, of its names and contents.

    Computed once in a command.
    """
    if os.path.isdir(path):
        return folder_digest(os.path.abspath(path))
    return once(os.path.abspath(path), lambda: content_digest(str(path))[:12])


def folder_digest(folder: str) -> str:
    """The digest of all files below a folder; computed once in a command."""
    return once(folder, lambda: set_digest({os.path.relpath(path, folder): path for path in files_below(folder)}))


_made: dict[str, str] = {}


def once(key: str, make: Callable[[], str]) -> str:
    """A digest that a command needs several times, computed the first time."""
    if key not in _made:
        _made[key] = make()
    return _made[key]


def forget() -> None:
    """Look at all folders again: they may have changed since the last command of this process."""
    _made.clear()


def content_digest(path: str) -> str:
    """The SHA-256 of a file's content, 64 hex digits."""
    with open(path, "rb") as file:
        state = hashlib.sha256()
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def set_digest(files: Mapping[str, str]) -> str:
    """The first 12 hex digits of the SHA-256 of the names and contents of files.

    files   name -> path; names are relative, so that the digest does not depend on where the set is
    """
    kept = _Kept(files)
    if kept.digest:
        return kept.digest
    state = hashlib.sha256()
    for name in sorted(files, key=os.fsencode):
        state.update(os.fsencode(name) + b"\0" + kept.content(files[name]).encode() + b"\n")
    digest = state.hexdigest()[:12]
    kept.store(digest)
    return digest


class _Kept:
    """The cache of one set: its digest if no file has changed, else the digests of those that have not.

    An unusable cache costs time only.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self.facts = {path: self._facts(path) for path in files.values()}
        listing = hashlib.sha256()
        for name, path in sorted(files.items(), key=lambda item: os.fsencode(item[0])):
            listing.update(os.fsencode(f"{name}\0{path}\0{self.facts[path]}\n"))
        self.listing = listing.hexdigest()
        place = os.path.commonpath([os.path.abspath(path) for path in files.values()]) if files else ""
        self.file = cache_folder() / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:24]}.json"
        summary = _read(self.file)
        self.digest = summary.get("digest", "") if summary.get("listing") == self.listing else ""
        self.known: dict[str, Any] = {} if self.digest or not summary else _read(self._contents)
        self.found: dict[str, Any] = {}

    @property
    def _contents(self) -> Path:
        return self.file.with_suffix(".files.json")

    @staticmethod
    def _facts(path: str) -> list[int]:
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]

    def content(self, path: str) -> str:
        """The digest of a file of the set."""
        key, facts = path.encode(errors="backslashreplace").decode(), self.facts[path]
        entry = self.known.get(key)
        match entry:
            case [known, str(digest)] if known == facts:
                pass
            case _:
                digest = content_digest(path)
        self.found[key] = [facts, digest]
        return digest

    def store(self, digest: str) -> None:
        if any(time.time() - changed / 1e9 < SETTLED for _, changed, *_ in self.facts.values()):
            return
        with suppress(RunError):  # the cache cannot be written
            write_text(self._contents, json.dumps(self.found))
            write_text(self.file, json.dumps({"listing": self.listing, "digest": digest}))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def cache_folder() -> Path:
    """The folder of the user's cache, by XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nonisotropic" / "digests"
