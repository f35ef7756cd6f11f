"""One value type for positions in training, so that epochs and iterations are never confused."""

from __future__ import annotations

import re
from dataclasses import dataclass

from foundations.errors import UsageError

_PATTERN = re.compile(r"(\d+)(ep|it)")


@dataclass(frozen=True, order=True)
class Step:
    """A number of optimizer steps ("iterations"), made from either unit by `parse`."""

    iteration: int

    @staticmethod
    def check(text: str) -> None:
        """Raise `UsageError` unless text reads like 40ep or 5000it."""
        if not _PATTERN.fullmatch(text):
            raise UsageError(f"expected a number of epochs or iterations such as 40ep or 5000it, got '{text}'")

    @classmethod
    def parse(cls, text: str, iterations_per_epoch: int) -> Step:
        """'40ep' or '5000it' as a Step, given how many optimizer steps make an epoch."""
        cls.check(text)
        amount, unit = int(text[:-2]), text[-2:]
        return cls(amount * iterations_per_epoch if unit == "ep" else amount)
