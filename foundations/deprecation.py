"""Names that were renamed or go: what to write instead, and the version in which the old name is gone.

docs/stability.md says what is promised. `DEPRECATED` has an entry for each old name; flags are translated in
cli/published_flags.py, names of the package `nonisotropic` in nonisotropic.py, and whatever else is old calls
`warn_once` where it is used. A test fails when the version is reached and the entry is still there.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class Deprecation:
    """The words to write instead of an old name, "" if there are none; and the version in which the old one is gone."""

    instead: str
    gone_in: str

    def told(self, old: str) -> str:
        """The warning, in a line."""
        advice = f"write {self.instead}" if self.instead else "nothing takes its place"
        return f"{old} is deprecated and gone in version {self.gone_in}; {advice}"


# "--flag" -> "--other_flag" with the same values, or a name of the package -> another.
DEPRECATED: dict[str, Deprecation] = {}

_told: set[str] = set()


def warn_once(old: str, stacklevel: int = 2) -> Deprecation:
    """Warn (FutureWarning, which Python shows to everybody) that a name of `DEPRECATED` is old: once in a process.

    stacklevel   as in warnings.warn, counted from the function that calls this one
    """
    found = DEPRECATED[old]
    if old not in _told:
        _told.add(old)
        warnings.warn(found.told(old), FutureWarning, stacklevel=stacklevel + 1)
    return found
