"""Text files that people write, with whatever editor."""

from __future__ import annotations

import codecs
from pathlib import Path

from foundations.errors import UsageError


def read_text(path: Path | str) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark; a byte order mark is left out, lines end in \\n.

    Raises UsageError if it cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}: expected text in UTF-8, line {line} is not; save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
