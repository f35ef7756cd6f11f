"""Figures of what people see: AUROCs by group, and the pairs about which the threat and people differ most."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from matplotlib.figure import Figure

from datasets.human_pairs import HumanPairs
from foundations.pixels import as_floats
from runners.evaluate_threat.charts import GROUP_COLOURS, WIDTH, legend, style, without_frame
from runners.evaluate_threat.human_desc import human_parts
from runners.sheets import Sheet

ACROSS = 8  # pairs in a row
APART = 0.75  # of the room between two groups, for the marks of one


def aurocs(human: dict[str, Any]) -> Figure:
    """AUROC of every threat with its interval, over all pairs and by group."""
    parts = human_parts(human)
    names = [name for name in human["threats"] if "[" not in name]
    styles = style(names)
    figure = Figure(figsize=(WIDTH * 0.75, 0.9 + (0.3 + 0.09 * len(names)) * len(parts)), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        shift = (place - (len(names) - 1) / 2) * APART / max(len(names), 1)
        marks = [(row + shift, part["auroc"][name]) for row, part in enumerate(parts.values()) if name in part["auroc"]]
        if not marks:
            continue
        centres, low, high = (numpy.array([found[key] for _, found in marks]) for key in ("auroc", "low", "high"))
        error = numpy.stack((centres - low, high - centres)).clip(min=0)
        look: dict[str, Any] = {"linestyle": "none", "markersize": 4, "elinewidth": 1, "capsize": 2} | styles[name]
        axes.errorbar(centres, [position for position, _ in marks], xerr=error, **look)
    axes.axvline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    titles = [f"{title}\n{part['changed']} of {part['num_pairs']} changed" for title, part in parts.items()]
    axes.set_yticks(range(len(parts)), titles, fontsize=8)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set_xlabel("AUROC of telling where people see another class (0.5: chance, dotted)", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    legend(figure, styles)
    return without_frame(figure)


def pairs(pairs: HumanPairs, threats: dict[str, numpy.ndarray]) -> Figure | None:
    """Pairs, before and after, about which the first threat and people differ most; None if people see all alike.

    Above: people see another class, smallest threats first. Below: people see the same class, largest threats first.
    """
    assert pairs.people is not None
    name, values = next(iter(threats.items()))
    order, changed = numpy.argsort(values, kind="stable"), pairs.people != pairs.label
    kinds = {
        "unsafe": [row for row in order if changed[row]][:ACROSS],
        "safe": [row for row in order[::-1] if not changed[row]][:ACROSS],
    }
    if not all(kinds.values()):
        return None
    sheet = Sheet(2 * len(kinds), ACROSS, (WIDTH * 1.15 / ACROSS, 1.25))
    for part, (group, rows) in enumerate(kinds.items()):
        for place, row in enumerate(rows):
            colour, first = GROUP_COLOURS[group], 2 * part * ACROSS + place
            before, after = (as_floats(torch.from_numpy(images[row])) for images in (pairs.clean, pairs.changed))
            sheet.picture(first, before, f"class {_name(pairs, pairs.label[row])}", "", "#000000")
            seen = f"people: {_name(pairs, pairs.people[row])}"
            sheet.picture(first + ACROSS, after, seen, f"{name} {values[row]:.2f}", colour)
    return sheet.finished()


def _name(pairs: HumanPairs, label: int) -> str:
    return str(label) if pairs.classes is None else str(pairs.classes[label])
