"""The two kinds of error that the user can act on; every other exception is a defect of this program."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import Any


class NonisotropicError(Exception):
    """Base class of errors that are shown to the user as one line: what was expected, what was found, what to do."""

    exit_code = 1


class UsageError(NonisotropicError, ValueError):
    """A mistake in the command line or in an argument (exit code 2)."""

    exit_code = 2


class RunError(NonisotropicError, RuntimeError):
    """A run that could not be carried out: missing data, a missing earlier run, a full disk (exit code 1)."""


def nearest(name: str, known: list[str]) -> str:
    """The suggestion " (did you mean 'X'?)" if a known name is similar to this one, else ""."""
    import difflib

    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def check_choice(flag: str, name: str, known: Collection[str]) -> None:
    """Refuse a value of a flag that is no name of a registry."""
    if name not in known:
        raise UsageError(f"--{flag}: expected one of {', '.join(known)}, got {name}{nearest(name, list(known))}")


def check_number(
    name: str, value: Any, low: float = 0, high: float = math.inf, *, whole: bool = False, infinite: bool = False
) -> None:
    """Raise UsageError for an argument in Python that is no number in [low, high]: types are not checked there.

    whole     only whole numbers; infinite: infinity too, where there is no upper limit
    """
    try:
        number = math.nan if isinstance(value, str) else float(operator.index(value) if whole else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # no number, several, or one beyond floats
        number = math.nan
    if low <= number <= high and (infinite or number < math.inf):
        return
    kind = "whole number" if whole else "number" if infinite else "finite number"
    limits = f">= {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
    raise UsageError(f"{name}: expected a {kind} {limits}, got {' '.join(repr(value).split())[:80]}")


def kind_of(value: Any) -> str:
    """A value by its type, for messages: "a list", "the class Linf"."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def look_up(registry: dict, name: str, kind: str):
    """The entry of a registry; an unknown name raises UsageError with the nearest name and all known names."""
    if name in registry:
        return registry[name]
    raise UsageError(f"unknown {kind} '{name}'{nearest(name, list(registry))}; known: {', '.join(registry)}")
