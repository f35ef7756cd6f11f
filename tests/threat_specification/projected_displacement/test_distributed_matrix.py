"""Anchors spread over processes give what one process gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed

from foundations.input_hparams import ThreatHparams
from tests.conftest import PROJECT
from tests.fork_server import fork_server
from tests.threat_specification.projected_displacement.rank_worker import FORMS, anchors, measure, rows_of
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.projected_displacement import distributed_matrix
from threat_specification.projected_displacement.anchor_matrix import AnchorMatrix
from threat_specification.projected_displacement.distributed_matrix import DistributedAnchorMatrix


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_are_one(processes: int, tmp_path: Path) -> None:
    """They may work on the same examples, or each on its own inside a session."""
    for dtype in ("uint8", "float"):
        anchors(dtype).save(tmp_path / f"{dtype}.safetensors")
    worker = Path(__file__).with_name("rank_worker.py")
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = fork_server().run([str(PROJECT), str(tmp_path)], variables, tmp_path, processes, worker, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    for dtype in ("uint8", "float"):
        for form in (*FORMS, "fixed"):  # fixed: the plain form, projected in fixed shapes
            alone = measure(anchors(dtype), "plain" if form == "fixed" else form, over_ranks=False)
            for rank in range(processes):
                path = tmp_path / f"{dtype}_{form}_{rank}.pt"
                agree(torch.load(path, weights_only=True), alone, (dtype, form))
                rows = rows_of(rank, processes)
                own = {name: values[rows] for name, values in alone.items() if name != "equal"}
                apart = torch.load(path.with_stem(f"{path.stem}_apart"), weights_only=True)
                agree(apart, own, (dtype, form, "apart"))


def agree(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], case: tuple[str, ...]) -> None:
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        if expected.is_floating_point():
            assert torch.allclose(found[name], expected, rtol=1e-5, atol=2e-6), (*case, name)
        else:
            assert found[name].tolist() == expected.tolist(), (*case, name)


def test_a_part_keeps_the_digest_of_the_whole(tmp_path: Path) -> None:
    whole = anchors("uint8")
    whole.save(tmp_path / "a.safetensors")
    parts = [AnchorSet.load(tmp_path / "a.safetensors", (r, 3)) for r in range(3)]
    assert torch.cat([part.images for part in parts]).equal(whole.images)
    assert torch.cat([part.indices for part in parts if part.indices is not None]).equal(torch.arange(23) + 100)
    assert {part.digest for part in parts} == {whole.digest}


@pytest.fixture
def group_of_one() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", ["uint8", "float"])
def test_products_and_rows_are_one_collective_operation_each(
    dtype: str, group_of_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = anchors(dtype).images
    matrix, alone = DistributedAnchorMatrix(images), AnchorMatrix(images)
    called: list[str] = []
    for name in ("all_gather", "all_reduce"):
        function = getattr(distributed, name)
        monkeypatch.setattr(
            distributed, name, lambda *known, function=function, name=name: called.append(name) or function(*known)
        )
    vectors, numbers = torch.rand(4, 25), torch.arange(23).repeat(20)
    torch.testing.assert_close(matrix.products(vectors), alone.products(vectors), rtol=1e-5, atol=1e-6)
    assert called == ["all_gather"]
    assert torch.equal(matrix.rows(numbers), alone.rows(numbers))
    assert called == ["all_gather", "all_reduce"]
    monkeypatch.setattr(distributed_matrix, "PIECE_BYTES", 100)
    assert torch.equal(matrix.rows(numbers), alone.rows(numbers))
    assert torch.equal(matrix.rows_at(numbers, slice(7, 30)), alone.rows(numbers[7:30]))


@pytest.mark.parametrize("over_ranks", [False, True])
@pytest.mark.parametrize("num_chunks", [1, 2])
def test_one_example_has_a_gradient(num_chunks: int, over_ranks: bool, group_of_one: None) -> None:
    """That of the largest <d, v_j>: v_j itself, by its definition."""
    chosen = anchors("float")
    threat = ProjectedDisplacement(ThreatHparams(num_chunks=num_chunks), anchors=chosen).prepare(over_ranks=over_ranks)
    x, d = torch.full((1, 1, 5, 5), 0.4), chosen.images[4:5] - 0.4
    moved = d.clone().requires_grad_(True)
    threat.bind(x, torch.zeros(1, dtype=torch.long)).evaluate(moved).sum().backward()
    assert moved.grad is not None
    torch.testing.assert_close(moved.grad, d / (0.5 * d.square().sum()), rtol=1e-5, atol=1e-6)


def test_processes_that_work_apart_ask_inside_a_session(group_of_one: None) -> None:
    threat = ProjectedDisplacement(anchors=anchors("float")).prepare(over_ranks=True, apart=True)
    x, labels = torch.full((2, 1, 5, 5), 0.4), torch.zeros(2, dtype=torch.long)
    with pytest.raises(RuntimeError, match="inside `with threat"):
        threat.bind(x, labels)
    with threat.session():
        threat.bind(x, labels)
