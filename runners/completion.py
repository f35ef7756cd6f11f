"""When a run need not be run again. Torch-free, so that saying so costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundations.desc import Desc
from foundations.results import markdown_table
from foundations.run_directory import RunDirectory


def finished_result(desc: Desc, root: Path) -> dict[str, Any] | None:
    """The result of a complete run, else None; a run whose children did not all succeed is tried again."""
    directory = RunDirectory(desc.directory(root))
    if desc.always_anew or not directory.is_complete:
        return None
    result = directory.result()
    return result if desc.is_satisfied_by(result) and not failures(result) else None


def failures(result: dict[str, Any]) -> int:
    """How many children of a multi_* run ended with an error."""
    return sum("error" in child for child in result.get("children", ()))


def plan(desc: Any, root: Path) -> str:
    """What a multi_* run would do: its children, how far each is, and where."""
    rows = [[child.name, _state(child, root), str(child.directory(root))] for child in desc.children]
    return markdown_table(["run", "state", "directory"], rows)


def _state(desc: Desc, root: Path) -> str:
    if finished_result(desc, root):
        return "complete"
    return "begun" if desc.directory(root).is_dir() else "to do"


def tell(desc: Desc, result: dict[str, Any], root: Path) -> int:
    """A result for people, on stdout. Returns the exit code."""
    print(f"{desc.summarize(result)}\n{desc.opened(root)}")
    return 1 if failures(result) else 0
