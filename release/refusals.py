"""Conditions for building a version: nothing uncommitted, a dated entry in the changelog, no tag yet."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from release.wheel_tests import setup_module_of

HEADING = re.compile(r"^## (\S+) \((.+)\)$", re.MULTILINE)
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def refusals(checkout: Path) -> list[str]:
    """The reasons against a release of the checkout, a line each."""
    version = setup_module_of(checkout).version()
    found = []
    if changed := _git(checkout, "status", "--porcelain"):
        names = ", ".join(line[3:] for line in changed.splitlines()[:5])
        found.append(f"expected a tree without changes, got changes of {names}: commit or remove them")
    text = (checkout / "CHANGELOG.md").read_text(encoding="utf-8")
    newest, when = next(iter(HEADING.findall(text)), ("nothing", "no date"))
    if newest != version or not DATE.fullmatch(when):
        found.append(
            f"CHANGELOG.md: expected its first heading to be '## {version} (YYYY-MM-DD)', got '## {newest} ({when})'"
        )
    if tags := _git(checkout, "tag", "--list", f"v{version}", version):
        found.append(f"version {version} is tagged already ({tags}): raise VERSION in foundations/program.py")
    return found


def _git(checkout: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, check=True).stdout.rstrip()
