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


def wilson_interval(accuracy: float, count: int) -> tuple[float, float]:
    """95 % confidence interval of a fraction observed on `count` examples (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    z = 1.959964
    centre = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


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
