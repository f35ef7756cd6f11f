"""Import aliases for packages that are installed under another name than the one that is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# RobustBench imports `autoattack`; the package that it installs is called `pyautoattack`.
ALIASES = {"autoattack": "pyautoattack"}


class AliasFinder(MetaPathFinder, Loader):
    """An import hook that answers an import of an alias with the real module.

    It comes last in sys.meta_path, so that an installed `autoattack` is found first.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname.split(".")[0] in ALIASES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        top, *rest = spec.name.split(".")
        module = importlib.import_module(".".join([ALIASES[top], *rest]))
        self.own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own_spec  # the import system has replaced it by the spec of the alias


def install_aliases() -> None:
    """Make the aliases importable; nothing is imported until an alias is used."""
    if not any(isinstance(finder, AliasFinder) for finder in sys.meta_path):
        sys.meta_path.append(AliasFinder())
