"""The two kinds of failure a person can do something about; everything else is a defect of ours."""

from __future__ import annotations

from collections.abc import Collection


class NonisotropicError(Exception):
    """Base of the errors that are shown to people as one line: what was expected, what came, what to do."""

    exit_code = 1


class UsageError(NonisotropicError, ValueError):
    """A mistake in the command line or in an argument (exit code 2)."""

    exit_code = 2


class RunError(NonisotropicError, RuntimeError):
    """A run that could not be carried out: missing data, a missing earlier run, a full disk (exit code 1)."""


def nearest(name: str, known: list[str]) -> str:
    """' (did you mean X?)' when one of the known names is close to this one, else ''."""
    import difflib

    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def check_choice(flag: str, name: str, known: Collection[str]) -> None:
    """Refuse a value of a flag that is no name of a registry."""
    if name not in known:
        raise UsageError(f"--{flag}: expected one of {', '.join(known)}, got {name}{nearest(name, list(known))}")


def look_up(registry: dict, name: str, kind: str):
    """The entry of a registry; an unknown name is answered with the nearest and all known ones."""
    if name in registry:
        return registry[name]
    raise UsageError(f"unknown {kind} '{name}'{nearest(name, list(registry))}; known: {', '.join(registry)}")
