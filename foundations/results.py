"""Parts that all results share: versions, machine and checksum; confidence intervals; Markdown tables."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from foundations.arithmetic import describe_arithmetic
from foundations.desc import digest
from foundations.devices import describe_device
from foundations.environment import Environment
from foundations.program import VERSION

CHECKSUM = "checksum"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "robustbench", "pyautoattack", "scikit-learn", "mlxtend")


def describe_environment(environment: Environment) -> dict[str, Any]:
    """Software versions, machine and processes that made a result; contains nothing that identifies a folder."""
    import torch

    return {
        "nonisotropic": VERSION,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": environment.device_name,
        "gpu": None if environment.device_name == "cpu" else describe_device(environment.device_name),
        **describe_arithmetic(environment.device_name),
        "world_size": environment.world_size,
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def sealed(result: dict[str, Any]) -> dict[str, Any]:
    """The result with a checksum of all its other fields."""
    return {**result, CHECKSUM: digest(json.loads(json.dumps(result, allow_nan=False)))}


def is_intact(result: Any) -> bool:
    """Check that the content of a result.json is as a runner wrote it: nothing edited, added or removed."""
    if not isinstance(result, dict) or CHECKSUM not in result:
        return False
    try:
        return result[CHECKSUM] == digest({name: value for name, value in result.items() if name != CHECKSUM})
    except ValueError:  # NaN, which no runner writes
        return False


MOST_DIGITS = 15  # of a float, about 0


def rounded(value: float, digits: int = 4) -> str:
    """A share as text: of more digits than asked for where it would look like 0 or 1, and is neither."""
    return _shown(value, digits, "f")


def percent(value: float, digits: int = 0) -> str:
    """The same in per cent: 99.98%, and not 100.0%, where something is left out."""
    return _shown(value, digits, "%")


def _shown(value: float, digits: int, sign: str) -> str:
    edges, plain = (0, 100 if sign == "%" else 1), f"{value:.{digits}{sign}}"
    if value in (0, 1):
        return plain
    texts = (f"{value:.{number}{sign}}" for number in range(digits, MOST_DIGITS + 1))
    return next((text for text in texts if float(text.rstrip("%")) not in edges), plain)


def between(low: float, high: float) -> str:
    """The ends of an interval, in brackets."""
    return f"[{rounded(low, 3)}, {rounded(high, 3)}]"


def wilson_interval(accuracy: float, count: int) -> tuple[float, float]:
    """95 % confidence interval of a fraction observed on `count` examples (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    z = 1.959964
    centre = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count))
    # Exactly 0 and 1 at the ends, where rounding leaves 1e-17.
    return (0.0 if accuracy <= 0 else max(0.0, centre - half)), (1.0 if accuracy >= 1 else min(1.0, centre + half))


def wilson_text(accuracy: float, count: int) -> str:
    """That interval for a column of its own, such as 0.123-0.456."""
    return "-".join(rounded(end, 3) for end in wilson_interval(accuracy, count))


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns are also aligned as plain text."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def csv_table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
