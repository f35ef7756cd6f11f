"""Imports on demand: registries name code as "module:object", which is imported only when it is used."""

from __future__ import annotations

import importlib
from typing import Any


def load_object(reference: str) -> Any:
    """The object that "module:object" names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
