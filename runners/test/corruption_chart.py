"""The chart of accuracy under corruptions."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from runners.corruptions import category_of
from runners.evaluate_threat.corruption_charts import COLOURS, ORDER, PANELS
from runners.evaluate_threat.panels import CELL, Panel
from runners.sheets import Sheet

GREY = "#777777"


def corruption_chart(found: dict[str, Any], clean: float | None, baseline: dict[str, Any] | None) -> Figure:
    """A panel for each corruption with accuracy against severity, by category.

    clean      accuracy without corruption, a dotted line, if it was measured
    baseline   its fields, the same lines dashed, if there is one
    """
    accuracies: dict[str, dict[str, float]] = found["by_corruption"]
    names = sorted(accuracies, key=lambda name: ORDER.index(category_of(name)))
    levels = numpy.array(sorted({float(level) for of in accuracies.values() for level in of}))
    across = min(PANELS, len(names))
    sheet = Sheet(-(-len(names) // across), across, CELL, corner=(0.42, 0.15), rest=(0.05, 0.3))
    panels = {name: Panel(sheet.cell(place), levels, 1.0) for place, name in enumerate(names)}
    looks: dict[str, dict[str, Any]] = {}
    for place, (name, panel) in enumerate(panels.items()):
        kind = category_of(name)
        looks[kind] = {"color": COLOURS[kind], "marker": "o", "markersize": 2.5, "linewidth": 1}
        _line(sheet.axes, panel, accuracies[name], looks[kind])
        if baseline is not None:
            looks[f"baseline: {baseline['name']}"] = dashed = {"color": GREY, "linestyle": "--", "linewidth": 0.9}
            _line(sheet.axes, panel, baseline["by_corruption"][name], dashed)
        title = textwrap.fill(name.replace("_", " "), 18)
        panel.write(sheet.axes, title, across=place + across >= len(names), up=place % across == 0)
    if clean is not None:
        looks["no corruption"] = dotted = {"color": GREY, "linestyle": ":", "linewidth": 0.9}
        ends = levels[[0, -1]]
        for panel in panels.values():
            sheet.axes.plot(*panel.points(ends, numpy.array([clean, clean])).T, **dotted)
    frames = [line for panel in panels.values() for line in panel.frame()]
    sheet.axes.add_collection(LineCollection(frames, colors="black", linewidths=0.8))
    figure = sheet.finished()
    figure.supxlabel("severity", fontsize=8)
    figure.supylabel("accuracy", x=0.005, fontsize=8)
    handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, frameon=False, fontsize=7)
    return figure


def _line(axes: Any, panel: Panel, levels: dict[str, float], look: dict[str, Any]) -> None:
    severities = numpy.array([float(level) for level in levels])
    axes.plot(*panel.points(severities, numpy.array(list(levels.values()))).T, **look)
