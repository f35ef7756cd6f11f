"""Docstrings of this project as reStructuredText: lines of a name and what it is, apart by spaces, become lists."""

from __future__ import annotations

import re

ROW = re.compile(r"(\S(?:.*?\S)?)(?: {2,})(\S.*)")


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring; examples and indented text stay as they are."""
    found: list[str] = []
    for paragraph in _paragraphs(lines):
        first = paragraph[0]
        if first.startswith(">>>") or first[0].isspace():
            found += paragraph
        elif ROW.fullmatch(first):
            found += _rows(paragraph)
        else:
            found += [_marked(line) for line in paragraph]
        found.append("")
    return found


def _paragraphs(lines: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line.rstrip())
        elif found[-1]:
            found.append([])
    return [paragraph for paragraph in found if paragraph]


def _rows(lines: list[str]) -> list[str]:
    """A list of names and what they are; the first line says in which column the second begins."""
    matched = ROW.fullmatch(lines[0])
    assert matched
    column = matched.start(2)
    found: list[str] = []
    for line in lines:
        if line[0].isspace():
            found.append(f"   {_marked(line.strip())}")
            continue
        row = ROW.fullmatch(line)
        is_in_column = len(line) > column and line[column - 1] == " " and line[column] != " "
        if is_in_column:
            name, words = line[:column].strip(), line[column:]
        else:
            name, words = row.groups() if row else (line, "")
        found += [f"``{name}``", f"   {_marked(words)}"]
    return found


def _marked(line: str) -> str:
    """Names in backticks as code; all else as it is read, without marks."""
    parts = re.split(r"`+([^`]+)`+", line)
    plain = [re.sub(r"([\\*|_])", r"\\\1", part) for part in parts[::2]]
    code = [f"``{part}``" for part in parts[1::2]]
    return "".join(part for pair in zip(plain, [*code, ""], strict=True) for part in pair)
