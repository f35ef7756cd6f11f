"""Imports point one way; registries and everything before a run import no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from cli.runner_registry import RUNNERS

PROJECT = Path(__file__).resolve().parent.parent

# Who may import whom, beside oneself and foundations.
ALLOWED: dict[str, set[str]] = {
    "nonisotropic": {"cli", "datasets", "models", "testing", "threat_specification", "training"},  # what is public
    "cli": {"runners", "datasets", "models"},
    "runners": {"training", "testing", "threat_specification", "datasets", "models"},
    "training": {"threat_specification"},
    "testing": {"threat_specification"},
    "threat_specification": set(),
    "datasets": set(),
    "models": set(),
    "foundations": set(),
}
DESCS = [reference.partition(":")[0] for reference in RUNNERS.values()]
# Of these, cli takes what needs no torch.
CLI_MAY_READ = {
    "runners.train.desc",
    "runners.commands",
    "runners.completion",
    "datasets.registry",
    "models.registry",
    "models.sources",
}


def imports(path: Path) -> list[str]:
    """Every module that a file imports, inside functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_one_way(room: str) -> None:
    files = [PROJECT / f"{room}.py"] if room == "nonisotropic" else sorted((PROJECT / room).rglob("*.py"))
    assert files
    for file in files:
        for module in imports(file):
            top = module.split(".")[0]
            if top in ALLOWED and top not in {room, "foundations"}:
                assert top in ALLOWED[room], f"{file.relative_to(PROJECT)} imports {module}"
                may = room != "cli" or {module, module.rpartition(".")[0]} & CLI_MAY_READ
                assert may, f"{file.relative_to(PROJECT)} imports {module}"


def test_no_import_goes_in_a_circle() -> None:
    """Imports inside functions and for types alone count too."""
    files = {
        ".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): file
        for room in ALLOWED
        for file in (PROJECT / room).rglob("*.py")
    }
    graph = {module: {name for name in imports(file) if name in files} for module, file in files.items()}
    assert len(graph) > 100
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize(
    "module", ["cli.main", *DESCS, "runners.commands", "runners.completion", "foundations.environment"]
)
def test_imports_no_torch(module: str) -> None:
    code = f"import sys; import {module}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["train", "--dataset_name=digits", "--model_name=conv", "--help"]]
)
def test_help_imports_no_torch(words: list[str]) -> None:
    code = (
        "import sys; from cli.main import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "usage:" in done.stdout


def test_runners_import_nothing_that_few_runs_need() -> None:
    """torchvision takes two seconds, most of it for a part of torch that compiles."""
    runners = sorted(f"runners.{file.parent.name}.runner" for file in (PROJECT / "runners").glob("*/runner.py"))
    rare = ("torchvision", "torch._dynamo", "sklearn", "scipy.optimize", "robustbench", "timm", "pandas")
    code = f"import sys, {', '.join(runners)}; print(*(name for name in {rare} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
