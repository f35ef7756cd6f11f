"""Positions in training, with epochs and iterations kept apart so that they are never confused."""

from __future__ import annotations

import re
from dataclasses import dataclass

from foundations.errors import UsageError

_PATTERN = re.compile(r"(\d+)(ep|it)")


@dataclass(frozen=True)
class Step:
    """An optimizer step ("iteration") and the epoch that it belongs to, both counted from 0."""

    iteration: int
    epoch: int


def iterations(text: str, per_epoch: int) -> int:
    """The number of optimizer steps in '40ep' or '5000it', with `per_epoch` steps in an epoch."""
    if not _PATTERN.fullmatch(text):
        raise UsageError(f"expected a number of epochs or iterations such as 40ep or 5000it, got '{text}'")
    amount, unit = int(text[:-2]), text[-2:]
    return amount * per_epoch if unit == "ep" else amount
