"""Warnings that Python shows at every call, not only at the first one with the same words."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

# Code whose callers a warning is for: it names the line of theirs from which this code was called.
OURS = tuple(
    f"{Path(__file__).resolve().parents[1] / name}{os.sep}"
    for name in ("foundations", "testing", "threat_specification")
)


def warn_at_every_call(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called our code.

    `warnings.warn` shows equal words once for each line: in a loop over models, for the first one alone. Without a
    registry Python remembers nothing of this line; filters such as "ignore", "error" and "once" decide as ever.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and os.path.realpath(frame.f_code.co_filename).startswith(OURS):
        frame = frame.f_back
    place, module = frame.f_code.co_filename, frame.f_globals.get("__name__", "")
    warnings.warn_explicit(message, category, place, frame.f_lineno, module, None, frame.f_globals)
