from __future__ import annotations

from pathlib import Path

import pytest

from foundations.environment import make_environment, resolve_root, usual_workers
from foundations.errors import UsageError
from foundations.program import CHECKOUT, FROM_WHEEL


def test_root_is_the_flag_then_the_variable_then_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NONISOTROPIC_HOME", str(tmp_path / "home"))
    assert resolve_root(str(tmp_path / "flag")) == tmp_path / "flag"
    assert resolve_root("") == tmp_path / "home"
    monkeypatch.delenv("NONISOTROPIC_HOME")
    assert resolve_root("") == (Path.cwd() if FROM_WHEEL else CHECKOUT) / "output"


def test_ranks_come_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    environment = make_environment("", "", "cpu", False, 0)
    assert (environment.rank, environment.local_rank, environment.world_size) == (3, 1, 4)
    assert not environment.is_primary  # rank 0 of the whole, not of a node
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert make_environment("", "", "cpu", False, 0).is_primary


@pytest.mark.parametrize("device", ["gpu", "tpu", "cuda:99", "meta"])
def test_devices_that_are_not_there_are_refused(device: str) -> None:
    with pytest.raises(UsageError, match="--device"):
        make_environment("", "", device, False, 0)


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="WORLD_SIZE should be a whole number, got 'two'"):
        make_environment("", "", "cpu", False, 0)


@pytest.mark.parametrize(
    ("device", "cores", "processes", "expected"),
    [("cuda:1", 64, 4, 8), ("cuda:0", 12, 4, 3), ("cuda:0", 2, 4, 0), ("cpu", 64, 1, 0)],
)
def test_a_gpu_has_processes_that_decode_images(
    device: str, cores: int, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    assert usual_workers(device, processes) == expected
