"""Anchors spread over processes give what one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import PROJECT
from tests.threat_specification.projected_displacement.rank_worker import FORMS, anchors, measure
from threat_specification import AnchorSet


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
        for form in FORMS:
            alone = measure(anchors(dtype), form, over_ranks=False)
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
