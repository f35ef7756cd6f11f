"""Frozen protocols of `test --protocol=NAME`: flags for images, anchors, sets and attacks, and digests of the inputs.

A protocol is a file of protocols/, which never changes once it is published; another protocol has another name.
Does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foundations.errors import RunError, UsageError, check_choice
from foundations.hparam_fields import format_value

FOLDER = Path(__file__).parent / "protocols"


def names() -> list[str]:
    """The names of all protocols."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read(name: str) -> dict[str, Any]:
    """The content of a protocol; raises UsageError for an unknown name."""
    check_choice("protocol", name, names())
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return content


def flags(name: str, dataset_name: str) -> dict[str, Any]:
    """Every flag that a protocol fixes for a data set, with its value."""
    protocol = read(name)
    if dataset_name not in protocol["data_sets"]:
        raise UsageError(
            f"--protocol={name}: expected --dataset_name to be one of {', '.join(protocol['data_sets'])}, got "
            f"{dataset_name or 'none'}"
        )
    fixed = {**protocol["flags"], **protocol["data_sets"][dataset_name]["flags"], "protocol": name}
    return {flag: tuple(value) if isinstance(value, list) else value for flag, value in fixed.items()}


def check_flags(values: Mapping[str, Any]) -> None:
    """Raise UsageError if a flag differs from what the protocol, if any, fixes for the data set."""
    name = values.get("protocol")
    if not name:
        return
    for flag, value in flags(name, values["dataset_name"]).items():
        if values.get(flag, value) != value:
            raise UsageError(
                f"--protocol={name} fixes --{flag}={format_value(value)}, got {format_value(values[flag])}; leave that "
                "flag out, or the protocol"
            )


def rows_digest(rows: Sequence[int]) -> str:
    """The first 12 hex digits of the SHA-256 of row numbers in order, as little-endian int64."""
    return hashlib.sha256(struct.pack(f"<{len(rows)}q", *rows)).hexdigest()[:12]


def check_inputs(name: str, dataset_name: str, found: Mapping[str, str]) -> list[str]:
    """Raise RunError if a digest is not the frozen one; returns the names of those that nobody has recorded yet.

    found   "anchors": digest of the anchors; "images": that of the rows evaluated; "pixels": of their images and labels
    """
    frozen: dict[str, Any] = read(name)["data_sets"][dataset_name]["digests"]
    for what, digest in frozen.items():
        if digest not in (None, found[what]):
            raise RunError(
                f"--protocol={name}: expected {what} with the digest {digest}, got {found[what]}; the data are "
                "others, or their choice is another one: the figures would not compare"
            )
    return [what for what, digest in frozen.items() if digest is None]
