from __future__ import annotations

import os
from pathlib import Path

import numpy
import pytest

from foundations.errors import RunError
from foundations.files import read_json, write_bytes, write_json, write_npz


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "result.json"
    write_json(target, {"accuracy": 0.5})

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(RunError, match="No space left on device; choose a writable place"):
        write_json(target, {"accuracy": 0.6})
    assert read_json(target) == {"accuracy": 0.5}
    assert os.listdir(tmp_path) == ["result.json"]


def test_folders_are_made_and_umask_is_kept(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a" / "b", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o640


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x", {"accuracy": float("nan")})


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(RunError, match=r"cannot read .*result\.json"):
        read_json(tmp_path / "result.json")


def test_equal_arrays_give_equal_bytes_without_pickle(tmp_path: Path) -> None:
    arrays = {"index": numpy.arange(5), "correct": numpy.ones(5, bool)}
    write_npz(tmp_path / "a.npz", arrays)
    write_npz(tmp_path / "b.npz", arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with numpy.load(tmp_path / "a.npz", allow_pickle=False) as read:
        assert read["index"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_npz(tmp_path / "c.npz", {"x": numpy.array([None])})
