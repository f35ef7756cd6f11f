"""Charts of a measurement, in Okabe and Ito's colours for colour-blind readers; markers differ too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from foundations.results import rounded
from runners.plots import PALETTE

if TYPE_CHECKING:
    from runners.evaluate_threat.measurement import Measurement

WIDTH = 7.0  # inches: the width of two columns of a paper
MARKERS = "osD^vPX*"
GROUP_NAMES = {
    "safe": "safe",
    "dose": "weaker unsafe",
    "adversarial": "adversarial",
    "unsafe": "unsafe",
    "morph": "unsafe morphs",
}
GROUP_COLOURS = {
    "safe": "#0072B2",
    "dose": "#E69F00",
    "adversarial": "#CC79A7",
    "unsafe": "#D55E00",
    "morph": "#8C2D04",
}
DRAWN = 2000  # quantiles that represent a distribution
LEVELS = 12  # distances between classes that are shown one by one

COMPARISONS = {
    "overall": "separation",
    "pairs of equal l2": "separation_matched",
    "directions d/||d||": "separation_directions",
    "morphs": "separation_morphs",
    "morphs, matched": "separation_morphs_matched",
}


def style(names: list[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker for each threat."""
    return {
        name: {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)]}
        for number, name in enumerate(names)
    }


def separation(measurement: Measurement) -> Figure:
    """AUROCs with their intervals, in several comparisons, by category and by severity."""
    result, styles = measurement.result, style(measurement.main)
    rows = {title: result[key] for title, key in COMPARISONS.items() if result.get(key)}
    rows |= result["separation_by_category"]
    rows |= {f"severity {level}": found for level, found in result["separation_by_severity"].items()}
    figure = Figure(figsize=(WIDTH * 0.75, 0.9 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places: dict[str, list[tuple[float, dict[str, float]]]] = {name: [] for name in measurement.main}
    for row, found in enumerate(rows.values()):
        shown = [name for name in measurement.main if name in found]
        for place, name in enumerate(shown):
            places[name].append((row + (place - (len(shown) - 1) / 2) * 0.17, found[name]))
    for name, marks in places.items():
        centres, low, high = (numpy.array([metrics[key] for _, metrics in marks]) for key in ("auroc", "low", "high"))
        error = numpy.stack((centres - low, high - centres)).clip(min=0)
        look: dict[str, Any] = {"linestyle": "none", "markersize": 4, "elinewidth": 1, "capsize": 2} | styles[name]
        axes.errorbar(centres, [position for position, _ in marks], xerr=error, **look)
    axes.axvline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("AUROC (0.5: chance, dotted)", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    legend(figure, styles)
    return without_frame(figure)


def class_distance(measurement: Measurement) -> Figure | None:
    """PD-W over PD of moves to another class against the distance of the classes (the paper's Fig. 5)."""
    distances = measurement.class_distances
    if distances is None:
        return None
    plain, weighted = (measurement.threats[name][:, measurement.other_class].astype(float) for name in ("PD", "PD-W"))
    relative = weighted / numpy.maximum(plain, 1e-12)
    levels = numpy.unique(distances.round(6))
    if len(levels) > LEVELS:  # many classes: intervals of distance
        edges = numpy.quantile(distances, numpy.linspace(0, 1, LEVELS + 1))
        groups = numpy.clip(numpy.searchsorted(edges, distances, side="right") - 1, 0, LEVELS - 1)
    else:
        groups = numpy.searchsorted(levels, distances.round(6))
    parts = [groups == group for group in numpy.unique(groups)]
    figure = Figure(figsize=(WIDTH * 0.6, 2.8), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(distances, relative, s=6, alpha=0.25, color=GROUP_COLOURS["safe"], linewidth=0)
    centres = [distances[part].mean() for part in parts]
    quartiles = numpy.array([numpy.quantile(relative[part], (0.25, 0.5, 0.75)) for part in parts])
    axes.plot(centres, quartiles[:, 1], marker="o", markersize=4, color=GROUP_COLOURS["unsafe"], label="median")
    axes.fill_between(centres, quartiles[:, 0], quartiles[:, 2], color=GROUP_COLOURS["unsafe"], alpha=0.2)
    axes.set_xlabel("class weight W of the two classes (1: as far apart as any, in relative distances)", fontsize=8)
    axes.set_ylabel("PD-W / PD of the other image", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)
    return without_frame(figure)


def distributions(measurement: Measurement) -> Figure:
    """A panel for each threat with a violin for each group; medians are marked."""
    names = measurement.main
    groups = [group for group in GROUP_NAMES if measurement.columns(group)]
    groups = [group for group in groups if _pooled(measurement, names[0], group).size]
    figure = Figure(figsize=(WIDTH, 0.5 + 0.42 * len(groups) * -(-len(names) // 2)), layout="constrained")
    grid = figure.subplots(-(-len(names) // 2), 2, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_axis_off()
            continue
        name = names[place]
        most = max(float(numpy.quantile(_pooled(measurement, name, group), 0.995)) for group in groups)
        for row, group in enumerate(groups):
            values = numpy.quantile(_pooled(measurement, name, group), numpy.linspace(0.0025, 0.9975, DRAWN))
            # Spread the values a little: a constant has no density.
            values = values + numpy.linspace(-1, 1, DRAWN) * 1e-3 * max(most, 1e-9)
            violin = axes.violinplot(values, [row], orientation="horizontal", widths=0.9, showextrema=False)
            for body in violin["bodies"]:
                body.set(facecolor=GROUP_COLOURS[group], edgecolor=GROUP_COLOURS[group], alpha=0.55)
            axes.plot(numpy.median(values), row, "|", color="black", markersize=11, markeredgewidth=1.5)
        axes.set_yticks(range(len(groups)), [GROUP_NAMES[group] for group in groups], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(0, most * 1.03)
        axes.tick_params(axis="x", labelsize=7)
        auroc = measurement.result["separation"][name]["auroc"]
        axes.set_title(f"{name}: AUROC {rounded(auroc, 3)}", fontsize=8)
    return without_frame(figure)


def _pooled(measurement: Measurement, name: str, group: str) -> numpy.ndarray:
    values = measurement.threats[name][:, measurement.columns(group)].ravel()
    return values[~numpy.isnan(values)]


def legend(figure: Figure, styles: dict[str, dict[str, Any]]) -> None:
    handles = [Line2D([], [], markersize=4, linewidth=1, label=name, **look) for name, look in styles.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8)


def without_frame(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure
