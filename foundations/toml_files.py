"""TOML: reading files that people write, and writing a flat list of values. No library here writes it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from foundations.errors import UsageError
from foundations.hparam_fields import format_value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def parse_toml(text: str, path: str) -> dict[str, Any]:
    """The content of a TOML file; raises UsageError, with line and column, if the text is none."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: expected TOML: {error}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
        raise UsageError(f"{path}: expected TOML: {' '.join(str(error).split())}") from error


def toml_line(name: str, value: Any) -> str:
    """`name = value`; numbers such as 8/255 are text, as flags take them."""
    return f"{name} = {_written(value)}\n"


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, which wants one more. A path that is no UTF-8 cannot be written.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f").encode("utf-8", "replace").decode()
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_written, value))}]"
    text = format_value(value)
    return f'"{text}"' if "/" in text else repr(value)
