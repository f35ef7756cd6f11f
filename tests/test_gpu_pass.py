"""The pass over a GPU, tried out on the CPU: its sections, and what it does about one that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu_pass
from benchmarks.gpu.bench import Bench

PROJECT = Path(__file__).resolve().parent.parent
TRIAL = ("--device=cpu", "--tiny")
# The others start processes or take long; together with them the trial takes a minute.
QUICK = ("setting", "exactness", "bits", "collectives", "threat", "projection", "training")


def fails(bench: Bench) -> None:
    bench.tell("before it fails", 1.5, "ms")
    raise RuntimeError("no such | kernel")


def works(bench: Bench) -> None:
    bench.tell("after it", 2, aim="2")


@pytest.fixture
def two_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {name: gpu_pass.Section(f"It {name}", f"{name} of this file", 5.0) for name in ("fails", "works")}
    monkeypatch.setattr(gpu_pass, "SECTIONS", made)
    monkeypatch.setattr(gpu_pass, "load_object", lambda reference: globals()[reference.split()[0]])


def test_sections_on_the_cpu(tmp_path: Path) -> None:
    precision = torch.get_float32_matmul_precision()
    assert gpu_pass.main([*TRIAL, f"--only={','.join(QUICK)}", f"--out={tmp_path}"]) == 0
    assert torch.get_float32_matmul_precision() == precision and not torch.distributed.is_initialized()
    found = json.loads((tmp_path / "RESULTS_GPU.json").read_text())
    assert set(QUICK) == {figure["section"] for figure in found["figures"]} == set(found["seconds"])
    values = {figure["case"]: figure["value"] for figure in found["figures"]}
    assert values["plain: scaled instead of projected"] == 0
    assert values["plain: largest threat over threshold, in float64"] == pytest.approx(1, abs=1e-4)
    assert all(values[case] is True for case in values if case.endswith("equal"))
    table = (tmp_path / "RESULTS_GPU.md").read_text()
    assert "the CPU (tiny problems)" in table and torch.__version__ in table
    assert all(f"## {gpu_pass.SECTIONS[name].title}\n" in table for name in QUICK)


def test_a_section_that_fails_is_passed_over(
    two_sections: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_pass.main([*TRIAL, f"--out={tmp_path}"]) == 1
    assert "fails: failed: RuntimeError: no such | kernel" in capsys.readouterr().out
    found = json.loads((tmp_path / "RESULTS_GPU.json").read_text())
    assert [figure["value"] for figure in found["figures"]] == [1.5, 2] and list(found["failed"]) == ["fails"]
    table = (tmp_path / "RESULTS_GPU.md").read_text()
    assert "**failed**: RuntimeError" in table and "1.5 ms" in table and "after it" in table


def test_a_section_without_time_is_left_out(two_sections: None, tmp_path: Path) -> None:
    assert gpu_pass.main(["--device=cpu", "--budget=4", f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "RESULTS_GPU.json").read_text())
    assert found["figures"] == [] and list(found["skipped"]) == ["fails", "works"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*TRIAL, f"--out={PROJECT / 'benchmarks'}"], "takes whole passes over a GPU alone"),
        ([*TRIAL, "--only=exactnes"], "no section 'exactnes'"),
        pytest.param(
            [],
            "no CUDA device here; --device=cpu --tiny tries the pass out",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_mistakes(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {file: file.stat().st_mtime_ns for file in (PROJECT / "benchmarks").glob("RESULTS*")}
    assert gpu_pass.main(words) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert {file: file.stat().st_mtime_ns for file in (PROJECT / "benchmarks").glob("RESULTS*")} == kept
