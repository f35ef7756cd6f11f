"""Digests of files and folders, and what they read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from foundations import digests
from foundations.digests import file_digest, files_below, forget, set_digest

OLD = 1_600_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def folder(place: Path, files: dict[str, bytes], changed: int = OLD) -> Path:
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
        os.utime(place / name, (changed, changed))
    return place


def digest(place: Path) -> str:
    forget()
    return file_digest(place)


def test_names_and_contents_make_the_digest_of_a_folder(tmp_path: Path) -> None:
    made = [
        digest(folder(tmp_path / str(number), files))
        for number, files in enumerate([{"a": b"1"}, {"a": b"2"}, {"b": b"1"}, {"a": b"12"}, {"a": b"1", "b": b""}])
    ]
    assert len(set(made)) == 5
    # Two files that change places, and a name with a part of the other.
    assert digest(folder(tmp_path / "x", {"a": b"1", "b": b"2"})) != digest(
        folder(tmp_path / "y", {"a": b"2", "b": b"1"})
    )


def test_a_set_keeps_its_digest_where_it_is_moved_copied_or_linked(tmp_path: Path) -> None:
    first = folder(tmp_path / "first", {"train/a/0.png": b"0", "train/b/1.png": b"1"})
    known = digest(first)
    copy = shutil.copytree(first, tmp_path / "copy")
    (copy / ".DS_Store").write_text("x")
    folder(copy, {"train/.ipynb_checkpoints/0.png": b"7", "train/a/._0.png": b"7", "__MACOSX/a": b"", "Thumbs.db": b""})
    links = tmp_path / "links"
    (links / "train").mkdir(parents=True)
    for name in "ab":
        os.symlink(first / "train" / name, links / "train" / name)
    assert digest(links) == digest(copy) == known
    assert digest(first.rename(tmp_path / "moved")) == known


def test_files_are_listed_once_and_in_order(tmp_path: Path) -> None:
    place = folder(tmp_path, {"b/1": b"", "a/2": b"", "a/10": b"", "c": b"", "a/x/0": b""})
    (place / "a" / "x" / "back").symlink_to(place)
    assert [os.path.relpath(path, place) for path in files_below(place)] == ["c", "a/10", "a/2", "a/x/0", "b/1"]


def test_names_are_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with open(os.fsencode(tmp_path / "a") + b"/caf\xe9.png", "wb") as file:
        file.write(b"1")
    assert len(digest(tmp_path / "a")) == 12


def test_contents_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder(tmp_path / "set", {"a": b"1", "b": b"2", "c": b"3"})
    read: list[str] = []
    whole = digests.content_digest
    monkeypatch.setattr(digests, "content_digest", lambda path: read.append(Path(path).name) or whole(path))
    first = digest(place)
    assert sorted(read) == ["a", "b", "c"]
    assert digest(place) == first and len(read) == 3
    folder(place, {"b": b"4"}, OLD + 1)  # of the same size
    assert digest(place) != first and read[3:] == ["b"]
    os.utime(place / "b", (OLD, OLD))
    folder(place, {"b": b"2"}, OLD)
    assert digest(place) == first


def test_a_file_rewritten_in_place_with_its_old_time_is_another(tmp_path: Path) -> None:
    """As some programs that copy do; size, time of change of the content and number of the file stay."""
    place = folder(tmp_path / "set", {"a": b"1", "b": b"2"})
    first = digest(place)
    with open(place / "b", "r+b") as file:
        file.write(b"3")
    os.utime(place / "b", (OLD, OLD))
    assert digest(place) != first


def test_a_file_that_has_just_changed_is_not_trusted(tmp_path: Path, cache: Path) -> None:
    """Its time of change may be that of a later change too."""
    place = tmp_path / "set"
    place.mkdir()
    (place / "a").write_bytes(b"1")
    digest(place)
    assert not list(cache.rglob("*.json"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"listing": 1, "digest": 2}'])
def test_a_damaged_cache_costs_time_only(tmp_path: Path, cache: Path, content: str) -> None:
    place = folder(tmp_path / "set", {"a": b"1"})
    known = digest(place)
    files = list(cache.rglob("*.json"))
    assert len(files) == 2
    for file in files:
        file.write_text(content)
    assert digest(place) == known
    shutil.rmtree(cache)
    cache.write_text("a file in the place of the folder")
    assert digest(place) == known


@pytest.mark.parametrize("entry", [[], [1], None, ["x", 3], {}])
def test_damaged_entries_of_the_cache_are_not_believed(tmp_path: Path, cache: Path, entry: object) -> None:
    place = folder(tmp_path / "set", {"a": b"1"})
    known = digest(place)
    summary, contents = sorted(cache.rglob("*.json"), key=lambda file: file.name.count("."))
    summary.write_text(json.dumps({"listing": "of before"}))
    contents.write_text(json.dumps({str(place / "a"): entry}))
    assert digest(place) == known


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="gone"):
        digest(tmp_path)
    assert set_digest({}) == set_digest({})
