"""Anchors spread over processes give what one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed

from tests.conftest import PROJECT
from tests.threat_specification.projected_displacement.rank_worker import FORMS, anchors, measure
from threat_specification import AnchorSet
from threat_specification.projected_displacement import distributed_matrix
from threat_specification.projected_displacement.anchor_matrix import AnchorMatrix
from threat_specification.projected_displacement.distributed_matrix import DistributedAnchorMatrix


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_are_one(processes: int, tmp_path: Path) -> None:
    for dtype in ("uint8", "float"):
        anchors(dtype).save(tmp_path / f"{dtype}.safetensors")
    worker = Path(__file__).with_name("rank_worker.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*launcher, str(worker), str(PROJECT), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for dtype in ("uint8", "float"):
        for form in (*FORMS, "fixed"):  # fixed: the plain form, projected in fixed shapes
            alone = measure(anchors(dtype), "plain" if form == "fixed" else form, over_ranks=False)
            for rank in range(processes):
                together = torch.load(tmp_path / f"{dtype}_{form}_{rank}.pt", weights_only=True)
                for name, expected in alone.items():
                    if expected.is_floating_point():
                        assert torch.allclose(together[name], expected, rtol=1e-5, atol=2e-6), (dtype, form, name)
                    else:
                        assert together[name].equal(expected), (dtype, form, name)


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
