"""Checks for complete runs, which need not be run again. Does not import torch, so that the answer is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundations.desc import Desc, StoredRun
from foundations.errors import RunError
from foundations.results import markdown_table
from foundations.run_directory import RunDirectory
from runners.commands import command


def finished_result(desc: Desc, root: Path) -> dict[str, Any] | None:
    """The result of a complete run, else None; a run with failed children counts as incomplete.

    Raises UsageError if what it was run with was edited meanwhile, and RunError if the result was.
    """
    directory = RunDirectory(desc.directory(root))
    if desc.always_anew or not directory.is_complete:
        return None
    check_stored(desc, directory, root)
    if any(finished_result(child, root) is None for child in getattr(desc, "children", ())):
        return None  # removed, or asked for more, such as --save_adversarials
    result = directory.result()
    return result if desc.is_satisfied_by(result) and not failures(result) else None


def check_stored(desc: Desc, directory: RunDirectory, root: Path) -> None:
    """Raise an error if hparams.json was edited or is another run's: the figures would be of something else."""
    stored = StoredRun.read(directory.path, root, desc.runner)
    if (stored.hash, stored.replicate) != (desc.hash, desc.replicate):
        raise RunError(
            f"{directory / 'hparams.json'} belongs to another run ({stored.hash}, replicate {stored.replicate}); "
            f"remove that directory and run again: {command(desc)}"
        )


def failures(result: dict[str, Any]) -> int:
    """The number of children of a multi_* run that ended with an error."""
    return sum("error" in child for child in result.get("children", ()))


def plan(desc: Any, root: Path) -> str:
    """A table of what a multi_* run would do: its children, their state, and their directories."""
    rows = [[child.name, _state(child, root), str(child.directory(root))] for child in desc.children]
    return markdown_table(["run", "state", "directory"], rows)


def _state(desc: Desc, root: Path) -> str:
    if finished_result(desc, root):
        return "complete"
    return "begun" if desc.directory(root).is_dir() else "to do"


def tell(desc: Desc, result: dict[str, Any], root: Path) -> int:
    """Print a result for the user on stdout. Returns the exit code."""
    print(f"{desc.summarize(result)}\n{desc.opened(root)}")
    return 1 if failures(result) else 0
