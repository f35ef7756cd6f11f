"""The table of what people see: how well each threat tells where they see another class."""

from __future__ import annotations

from runners.evaluate_threat.human_desc import human_notes, human_parts, human_title
from runners.report.collect import FinishedRun
from runners.report.tables import Table, auroc


def human_table(run: FinishedRun) -> Table | None:
    """A row for each threat; None if no people were asked."""
    human = run.result.get("human")
    if not human:
        return None
    parts = human_parts(human)
    titles = (f"{title} ({part['changed']} of {part['num_pairs']})" for title, part in parts.items())
    table = Table(f"What people see, {run.label}", ["threat", *titles])
    told = [f"{human_title(human)}, with 95 % bootstrap intervals over images. 0.5 is chance", *human_notes(human)]
    table.note = "; ".join(told) + "."
    for threat in human["threats"]:
        table.add([threat, *(auroc(part["auroc"].get(threat)) for part in parts.values())], run)
    return table
