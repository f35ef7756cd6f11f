from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
import torch

from foundations.environment import Environment
from foundations.errors import RunError
from foundations.signals import Interrupted
from tests.training.sources import net, state_of
from training.checkpoints import Snapshot, Snapshots, weights_of
from training.random_states import gather_states, restore_states, seed_everything


def snapshot(step: int) -> Snapshot:
    return Snapshot({"model": {"w": torch.full((2,), float(step))}}, {"iteration": step, "sum": torch.tensor(step)})


def test_the_newest_are_kept(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "checkpoints", keep=2)
    assert snapshots.newest() == (None, [])
    for step in (5, 90, 1000):
        snapshots.write(step, snapshot(step))
    assert [path.name for path in snapshots.paths()] == ["step_000001000", "step_000000090"]
    found, damaged = snapshots.newest()
    assert found is not None and found.state["iteration"] == 1000 and not damaged
    assert found.weights["model"]["w"].tolist() == [1000, 1000]


@pytest.mark.parametrize("name", ["state.pt", "model.safetensors"])
@pytest.mark.parametrize("kept", [0, 40])
def test_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path, name: str, kept: int) -> None:
    snapshots = Snapshots(tmp_path, keep=3)
    for step in (1, 2):
        snapshots.write(step, snapshot(step))
    file = snapshots.paths()[0] / name
    file.write_bytes(file.read_bytes()[:kept])
    found, damaged = snapshots.newest()
    assert found is not None and found.state["iteration"] == 1
    assert [path.name for path in damaged] == ["step_000000002"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), PermissionError("not allowed"), MemoryError()])
def test_what_the_machine_cannot_read_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A run went back to an older checkpoint in silence, in one process of several perhaps."""
    Snapshots(tmp_path, keep=3).write(1, snapshot(1))
    monkeypatch.setattr("torch.load", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(
        RunError, match=r"cannot read the checkpoint .*step_000000001: .*; repeat the command, or remove"
    ):
        Snapshots(tmp_path, keep=3).newest()


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_take_no_place_of_new_ones(tmp_path: Path, keep: int) -> None:
    """The run goes on from an earlier step: they would be the newest, and each new one deleted when it was written."""
    snapshots = Snapshots(tmp_path, keep)
    for step in (8, 9):
        snapshots.write(step, snapshot(step))
    for path in snapshots.paths():
        (path / "state.pt").write_bytes(b"")
    for step in range(1, 12):
        snapshots.write(step, snapshot(step))
        found, _ = snapshots.newest()
        assert found is not None and found.state["iteration"] == step
    assert [int(path.name[-9:]) for path in snapshots.paths()] == list(range(11, 11 - keep, -1))


def test_a_request_to_end_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run would begin anew from an earlier step, instead of ending."""
    snapshots = Snapshots(tmp_path, keep=1)
    snapshots.write(1, snapshot(1))
    monkeypatch.setattr("torch.load", lambda *_, **__: (_ for _ in ()).throw(Interrupted("stopped")))
    with pytest.raises(Interrupted):
        snapshots.newest()


def test_one_that_was_being_written_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = Snapshots(tmp_path, keep=3)
    snapshots.write(1, snapshot(1))
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            snapshots.write(2, snapshot(2))
    assert [path.name for path in snapshots.paths()] == ["step_000000001"]
    snapshots.write(2, snapshot(2))
    assert [path.name for path in snapshots.paths()] == ["step_000000002", "step_000000001"]


def draws() -> tuple[float, float, float]:
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_random_states_come_back_from_a_file(tmp_path: Path) -> None:
    alone = Environment(root_dir=tmp_path)
    seed_everything(7)
    draws()
    Snapshots(tmp_path, keep=1).write(1, Snapshot({}, {"random": gather_states(alone)}))
    expected = draws()
    seed_everything(8)
    found, _ = Snapshots(tmp_path, keep=1).newest()
    assert found is not None
    restore_states(found.state["random"], alone)
    assert draws() == expected
    seed_everything(7)
    assert draws() != expected


@pytest.mark.parametrize(("rank", "world_size"), [(1, 2), (2, 3), (0, 1)])
def test_each_process_gets_its_own_state_back(rank: int, world_size: int, tmp_path: Path) -> None:
    """Those of two processes; a third takes the first one's."""
    states, expected = [], []
    for seed in (1, 2):
        seed_everything(seed)
        states.append(gather_states(Environment(root_dir=tmp_path)))
        expected.append(float(torch.rand(())))
    both = {**states[0], "torch": torch.cat([state["torch"] for state in states])}
    restore_states(both, Environment(root_dir=tmp_path, rank=rank, world_size=world_size))
    assert float(torch.rand(())) == expected[rank % 2]


def test_weights_are_a_copy() -> None:
    model = net()
    kept, before = weights_of(model), state_of(model)
    with torch.no_grad():
        model[1].weight.add_(1)
    assert all(kept[name].equal(before[name]) for name in before)


def test_dropout_draws_other_masks_in_each_process() -> None:
    """Their parts of a batch would share them; Python's and NumPy's numbers are the same everywhere."""
    drawn = []
    for rank in (0, 1, 0):
        seed_everything(7, rank)
        drawn.append((torch.rand(3).tolist(), random.random(), numpy.random.rand()))  # noqa: NPY002
    assert drawn[0] == drawn[2] and drawn[0][1:] == drawn[1][1:] and drawn[0][0] != drawn[1][0]


def test_a_checkpoint_that_has_lost_a_file_is_damaged(tmp_path: Path) -> None:
    """As where somebody removed a directory while it was written."""
    snapshots = Snapshots(tmp_path / "checkpoints", 3)
    for step in (1, 2):
        snapshots.write(step, snapshot(step))
    newest = tmp_path / "checkpoints" / "step_000000002"
    (newest / "model.safetensors").unlink()
    found, damaged = snapshots.newest()
    assert found is not None and found.state["iteration"] == 1 and damaged == [newest]
    assert set(found.state) == {"iteration", "sum"}
