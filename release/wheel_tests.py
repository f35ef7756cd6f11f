"""The tests as an installed wheel sees them: a copy whose imports the build's own rewriting moved below `nonisotropic`.

The copy has no packages of ours beside it, so that whatever a test imports is what was installed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

BESIDE = ("benchmarks", "docs", "tests", "CHANGELOG.md", "CITATION.cff", "README.md", ".zenodo.json", "pyproject.toml")
# Without the files that look at the checkout itself, the runners', which take long, and the faults'.
FAST = (
    "tests/cli",
    "tests/datasets",
    "tests/foundations",
    "tests/models",
    "tests/testing",
    "tests/threat_specification",
    "tests/training",
    "tests/test_api.py",
    "tests/test_public_surface.py",
)


def setup_module_of(checkout: Path) -> ModuleType:
    """setup.py, imported: it sets up nothing then."""
    spec = importlib.util.spec_from_file_location("setup_of_checkout", checkout / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_tests(checkout: Path, folder: Path) -> None:
    """Write the copy below an empty folder."""
    setup = setup_module_of(checkout)
    files = [file for name in BESIDE for file in [checkout / name, *(checkout / name).rglob("*")] if file.is_file()]
    for file in files:
        if "__pycache__" in file.parts:
            continue
        name, content = file.relative_to(checkout), file.read_bytes()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        is_code = file.suffix == ".py"
        (folder / name).write_bytes(setup.below_one_package(content, str(name)) if is_code else content)
