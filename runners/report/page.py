"""Rendering of sections of tables and figures: one self-contained HTML page, and the same as Markdown and CSV."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from foundations.results import markdown_table
from runners.report.assets import SCRIPT, STYLE
from runners.report.collect import FinishedRun
from runners.report.tables import Table

TO_ROOT = "../../"  # from reports/<dataset>/ to the root, so that links also work in a copy of the root


@dataclass(frozen=True)
class Picture:
    """A PNG file, its caption, and the run that made it."""

    caption: str
    path: Path
    run: FinishedRun | None = None


@dataclass
class Section:
    """A heading, and the tables and figures below it."""

    title: str
    parts: list[Table | Picture] = field(default_factory=list)


def html_page(title: str, introduction: str, sections: list[Section], answer: Sequence[str] = ()) -> str:
    """The page as HTML, with the answer first. All text is escaped, and no external file is loaded."""
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in answer)
    in_short = f'<ul class="answer">{sentences}</ul>\n' if answer else ""
    links = "".join(f'<a href="#{_slug(section.title)}">{escape(section.title)}</a>' for section in sections)
    body = "\n".join(_section(section) for section in sections)
    return whole_page(
        title, f'{in_short}<p class="quiet">{escape(introduction)}</p>\n<nav>{links}</nav>\n{body}', "figure, large"
    )


def whole_page(title: str, body: str, dialog: str, style: str = "") -> str:
    """A page with this title, which is escaped, around HTML; `dialog` names what opens large."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
        f"<style>{STYLE}{style}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        f'{body}\n<dialog aria-label="{dialog}"></dialog>\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def markdown_page(title: str, introduction: str, sections: list[Section], answer: Sequence[str] = ()) -> str:
    """The page as Markdown: the answer, its tables, with commands, and the captions of its figures."""
    parts = [f"# {title}", *(["\n".join(f"* {sentence}" for sentence in answer)] if answer else []), introduction]
    for section in sections:
        parts.append(f"## {section.title}")
        for part in section.parts:
            if isinstance(part, Picture):
                parts.append(f"*{part.caption}*: see the page.")
                continue
            cells = [[cell.replace("|", "\\|") for cell in row] for row in part.rows]
            parts += [f"### {part.title}", markdown_table(part.header, cells)]
            repeats = dict.fromkeys(f"    {run.command}  # {run.relative}" for run in part.runs if run and run.command)
            parts += ["\n".join(repeats)] if repeats else []
    return "\n\n".join(parts) + "\n"


def csv_page(sections: list[Section]) -> str:
    """All tables as CSV: one line for each cell, with the run that the cell comes from."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["section", "table", "row", "column", "value", "directory", "command"])
    for section in sections:
        for table in section.parts:
            if isinstance(table, Table):
                for row, run in zip(table.rows, table.runs, strict=True):
                    source = [run.relative, run.command] if run else ["", ""]
                    for column, value in zip(table.header, row, strict=True):
                        writer.writerow([section.title, table.title, row[0], column, value, *source])
    return buffer.getvalue()


def _section(section: Section) -> str:
    parts = "\n".join(_table(part) if isinstance(part, Table) else _picture(part) for part in section.parts)
    return f'<section><h2 id="{_slug(section.title)}">{escape(section.title)}</h2>\n{parts}</section>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col"><button type="button">{escape(cell)}</button></th>' for cell in table.header)
    rows = "\n".join(_row(table, row, run) for row, run in zip(table.rows, table.runs, strict=True))
    sources = {run.relative: run for run in table.runs if run}
    repeats = "".join(
        f"<li><code>{escape(run.command)}</code><br>"
        f'<a class="quiet" href="{_link(run)}">{escape(run.relative)}</a></li>\n'
        for run in sources.values()
    )
    details = f"<details><summary>Commands and directories</summary><ol>{repeats}</ol></details>" if repeats else ""
    note = f'<p class="quiet">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h3>{escape(table.title)}</h3>\n{note}<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>\n{details}"
    )


def _row(table: Table, row: list[str], run: FinishedRun | None) -> str:
    cells = []
    for label, cell in zip(table.header, row, strict=True):
        text = f"<span>{escape(cell)}</span>"
        if run and any(letter.isdigit() for letter in cell):
            text = f'<a href="{_link(run)}" title="{escape(run.command, quote=True)}">{escape(cell)}</a>'
        cells.append(f'<td data-label="{escape(label, quote=True)}">{text}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    alt = escape(picture.caption, quote=True)
    image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
    caption, run = escape(picture.caption), picture.run
    if run:
        caption += f' (<a href="{_link(run)}" title="{escape(run.command, quote=True)}">run</a>)'
    image = f'<button type="button" class="zoom" title="enlarge">{image}</button>'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _link(run: FinishedRun) -> str:
    return escape(f"{TO_ROOT}{run.relative}/", quote=True)


def _slug(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")
