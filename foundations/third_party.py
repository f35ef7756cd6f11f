"""Stand-ins for modules that a package imports and that may be missing, in place only while it is imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

# RobustBench imports `autoattack`; the package that it installs is called `pyautoattack`.
AUTOATTACK = {"autoattack": "pyautoattack", "autoattack.state": "pyautoattack.state"}


@contextmanager
def names_for_robustbench() -> Iterator[None]:
    """A block in which robustbench can be imported: with `autoattack`, and with `pkg_resources`, which later versions
    of setuptools no longer have.

    Only what is missing is stood in for, and nothing is left in sys.modules.
    """
    added: dict[str, ModuleType] = {}
    if not _is_there("autoattack"):
        added |= {name: importlib.import_module(real) for name, real in AUTOATTACK.items()}
    if not _is_there("pkg_resources"):
        added["pkg_resources"] = _resources()
    sys.modules.update(added)
    try:
        yield
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _is_there(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _resources() -> ModuleType:
    """The one function of pkg_resources that robustbench calls: the path of a file beside a module."""
    module = ModuleType("pkg_resources")

    def resource_filename(name: str, resource: str) -> str:
        return str(Path(sys.modules[name].__file__ or "").parent / resource)

    module.resource_filename = resource_filename  # type: ignore[attr-defined]
    return module
