"""Tables and pictures -> one self-contained HTML page, and the same as Markdown."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from foundations.results import markdown_table
from runners.report.tables import Table

STYLE = """
:root { color-scheme: light dark; --line: #8884; --ink: #1a1a1a; --paper: #fdfdfc; --quiet: #666; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e6; --paper: #17181a; --quiet: #a0a0a0; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
figure { margin: 1.5rem 0; } figcaption, .quiet { color: var(--quiet); font-size: .85rem; }
img { max-width: 100%; background: #fff; border-radius: 4px; padding: 4px; box-sizing: border-box; }
code { font-size: .8rem; overflow-wrap: anywhere; } details { margin: .5rem 0; }
"""


def html_page(title: str, introduction: str, sections: list[Table | tuple[str, Path]]) -> str:
    """The page; a section is a table or a picture (caption, PNG file), embedded. Every text is escaped."""
    body = "\n".join(_table(part) if isinstance(part, Table) else _picture(*part) for part in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n<p>{escape(introduction)}</p>\n{body}\n</body></html>\n"
    )


def markdown_page(title: str, introduction: str, sections: list[Table | tuple[str, Path]]) -> str:
    """The tables of the page, and its captions."""
    parts = [f"# {title}", introduction]
    for part in sections:
        if isinstance(part, Table):
            cells = [[cell.replace("|", "\\|") for cell in row] for row in part.rows]
            parts += [f"## {part.title}", markdown_table(part.header, cells)]
            parts += [f"    {command}" for command in part.commands if command]
        else:
            parts.append(f"*{part[0]}*: see the page.")
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows)
    repeats = "".join(
        f"<li><code>{escape(command)}</code><br><span class=quiet>{escape(place)}</span></li>\n"
        for command, place in zip(table.commands, table.places, strict=True)
    )
    details = f"<details><summary>Commands and directories</summary><ol>{repeats}</ol></details>" if repeats else ""
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>\n{details}"
    )


def _picture(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    alt = escape(caption, quote=True)
    image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
