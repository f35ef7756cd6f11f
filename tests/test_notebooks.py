"""Notebooks run as they stand, and what is kept in them is what a run prints."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.fork_server import PROJECT, fork_server

FOLDER = PROJECT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_BYTES = 100_000
MARK = "\n=== the next cell ===\n"
# Commands that a notebook starts, in processes that are forked: Python and its packages are imported once.
COMMANDS_ARE_FORKED = """
import os, runpy, subprocess, sys
def _run(words, check, capture_output):
    assert words[:3] == [sys.executable, "-m", "nonisotropic"] and check and capture_output
    child = os.fork()
    if not child:
        code, sys.argv = 1, words[2:]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            runpy.run_module("nonisotropic", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, words
subprocess.run = _run
"""
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    """Those that a run executes."""
    cells = [cell for cell in cells_of(notebook) if cell["cell_type"] == "code"]
    return [cell for cell in cells if "skip-execution" not in cell["metadata"].get("tags", [])]


def printed(cell: dict[str, Any]) -> str:
    return "".join(line for output in cell["outputs"] for line in output.get("text", []))


def build_module() -> ModuleType:
    """docs/notebooks/build.py, without Jupyter, which tests do not have."""
    spec = importlib.util.spec_from_file_location("build_of_notebooks", FOLDER / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    missing = [name for name in ("nbclient", "nbformat") if importlib.util.find_spec(name) is None]
    for name in missing:
        stand_in = ModuleType(name)
        stand_in.NotebookClient = stand_in.NotebookNode = stand_in.from_dict = stand_in.read = None  # type: ignore[attr-defined]
        sys.modules[name] = stand_in
    try:
        spec.loader.exec_module(module)
    finally:
        for name in missing:
            del sys.modules[name]
    return module


def test_there_are_four() -> None:
    assert [notebook.stem[:2] for notebook in NOTEBOOKS] == ["1_", "2_", "3_", "4_"]
    listed = re.findall(r"\]\((.*\.ipynb)\)", (FOLDER / "README.md").read_text())
    assert listed == [notebook.name for notebook in NOTEBOOKS]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_what_is_kept_is_small_and_of_no_machine(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    assert not re.search(r"/(?:home|root|tmp|Users|work|usr|opt)/|https?://(?!arxiv\.org)|0x[0-9a-f]{6}", text)
    first, install = cells_of(notebook)[:2]
    assert "".join(first["source"]).split("\n")[2].startswith("At the end you ")
    assert install["source"] == ["%pip install --quiet nonisotropic"] and not install["outputs"]
    assert install["metadata"] == {"tags": ["skip-execution"]}
    code = code_cells(notebook)
    assert len(code) >= 5 and [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert sum(map(bool, map(printed, code))) >= 4
    for cell in code:
        assert max(len(line.rstrip("\n")) for line in cell["source"]) <= 120 and len(cell["source"]) <= 32
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data") and output.get("name", "stdout") == "stdout"
            if output["output_type"] == "display_data":
                assert set(output["data"]) == {"image/png"} and output["metadata"] == {}
                assert base64.b64decode(output["data"]["image/png"]).startswith(b"\x89PNG")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_is_written_as_the_build_writes_it(notebook: Path) -> None:
    build = build_module()
    text = notebook.read_text(encoding="utf-8")
    assert build.text(build.normalised(json.loads(text))) == text


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_links_of_its_words_lead_somewhere(notebook: Path) -> None:
    words = "\n".join("".join(cell["source"]) for cell in cells_of(notebook) if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\((?!http)([^)]+)\)", words)
    assert links
    for link in links:
        file, _, heading = link.partition("#")
        target = FOLDER / file
        assert target.is_file(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in {re.sub(r"\W+", "-", each.lower()).strip("-") for each in headings}, link


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs_and_prints_what_it_keeps(notebook: Path, tmp_path: Path) -> None:
    """Words to the letter; numbers to a tenth, since networks trained on other processors differ in some images."""
    cells = code_cells(notebook)
    script = tmp_path / "cells.py"
    sources = [COMMANDS_ARE_FORKED, *("".join(cell["source"]) for cell in cells)]
    script.write_text(f"\nprint({MARK!r}, end='', flush=True)\n".join(sources), encoding="utf-8")
    variables = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = fork_server().run([], variables, tmp_path, program=script)
    assert done.returncode == 0, done.stderr
    _, *parts = done.stdout.split(MARK)
    for cell, now in zip(cells, parts, strict=True):
        kept = printed(cell)
        assert NUMBER.sub("0", now).split() == NUMBER.sub("0", kept).split()
        for new, old in zip(NUMBER.findall(now), NUMBER.findall(kept), strict=True):
            most = 6 if float(old) > 2 else 0.1  # counts of images, and threats and shares
            assert abs(float(new) - float(old)) <= most, f"{old} is {new} now:\n{now}"


def test_what_the_words_claim_of_the_figures() -> None:
    first, _, third, _ = ("".join(map(printed, code_cells(notebook))) for notebook in NOTEBOOKS)
    rows = re.findall(r"^(\S.*?) +([\d.]+) +([\d.]+) +([\d.]+)$", first, re.MULTILINE)
    safe, unsafe = (
        [[float(size) for size in sizes] for name, *sizes in rows if ("another" in name) == is_unsafe]
        for is_unsafe in (False, True)
    )
    gaps = [min(unsafe_sizes) > max(safe_sizes) for safe_sizes, unsafe_sizes in zip(zip(*safe), zip(*unsafe))]  # noqa: B905
    assert gaps == [True, False, False] and len(rows) == 7
    assert len(re.findall(r"^PD 0\.00 at", first, re.MULTILINE)) == 3
    held = {name: int(share) for name, share in re.findall(r"^(\S+) +\d+% +(\d+)%$", third, re.MULTILINE)}
    assert held["PD-T"] < held["PD"] < held["L2"] < held["Linf"]
