"""The model card of a claim: Markdown with the evaluation results that the Hugging Face hub reads (model-index).

The hub's own flag `verified` means that the hub itself made the evaluation; it is false here. Whether `verify` was run
stands in the arguments of each metric and in the text. Strings are written as JSON, which is YAML.
"""

from __future__ import annotations

import json
import re
from typing import Any

from foundations.results import markdown_table
from runners.report.site_entries import Entry
from runners.report.site_pages import SENTENCES, SET_COLUMNS, curves, fact_rows, set_rows
from testing.claims.judging import described


def model_card(entry: Entry, site_url: str) -> str:
    """The content of MODEL_CARD.md."""
    words = [[_plain(str(cell)) for cell in row] for row in set_rows(entry)]
    facts = [[name, _plain(value)] for name, value in fact_rows(entry)]
    parts = [
        f"---\n{_yaml({'model-index': [_index(entry, site_url)]})}---",
        f"# {_plain(entry.called)}",
        *SENTENCES,
        markdown_table(["about this claim", ""], facts),
        markdown_table(list(SET_COLUMNS), words),
    ]
    for title, rows in curves(entry).items():
        parts += [
            f"## {_plain(title)}",
            markdown_table(["threshold", "accuracy at most"], [list(map(str, row)) for row in rows]),
        ]
    return "\n\n".join(parts) + "\n"


def _index(entry: Entry, site_url: str) -> dict[str, Any]:
    facts, dataset = entry.claim.facts, str(entry.claim.facts["data"]["description"].get("dataset_name", "unnamed"))
    args = {
        "verified_by_forward_passes": entry.is_verified,
        "record": entry.record.place if entry.record else "",
        "model_name_is_told": entry.is_name_told,
    }
    metrics = [_metric("clean accuracy, at most", entry.clean, args)]
    metrics += [_metric(f"accuracy at most in {described(each)}", each["accuracy"], args) for each in facts["claims"]]
    page = f"{entry.stem}.html"
    return {
        "name": entry.name,
        "results": [
            {
                "task": {"type": "image-classification", "name": "Image classification"},
                "dataset": {
                    "type": dataset,
                    "name": f"{dataset}, {facts['data']['examples']} images",
                    "split": facts["data"]["split"],
                    "args": {"sha256": facts["data"]["sha256"]},
                },
                "metrics": metrics,
                "source": {
                    "name": f"claim {entry.claim.digest}",
                    "url": f"{site_url.rstrip('/')}/{page}" if site_url else page,
                },
            }
        ],
    }


def _metric(name: str, value: float, args: dict[str, Any]) -> dict[str, Any]:
    return {"type": "accuracy", "value": value, "name": name, "args": args, "verified": False}


def _yaml(value: Any, indent: str = "") -> str:
    """Dictionaries and lists in block style, all else as JSON."""
    lines = ""
    items = value.items() if isinstance(value, dict) else ((None, one) for one in value)
    for name, one in items:
        start = f"{indent}-" if name is None else f"{indent}{name}:"
        if not isinstance(one, (dict, list)):
            lines += f"{start} {json.dumps(one, ensure_ascii=False)}\n"
        elif name is None:
            lines += f"{start} {_yaml(one, indent + '  ').lstrip()}"
        else:
            lines += f"{start}\n{_yaml(one, indent + '  ')}"
    return lines


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: every mark that could mean something stands behind a backslash."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&:@/]|(?<=www)\.)", r"\\\1", text, flags=re.IGNORECASE)
