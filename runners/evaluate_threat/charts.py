"""Charts of a measurement, in Okabe and Ito's colours for colour-blind readers; markers differ too."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

if TYPE_CHECKING:
    from runners.evaluate_threat.measurement import Measurement

WIDTH = 7.0  # inches: the width of two columns of a paper
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#8C8C00")
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
PANELS = 6  # panels in a row
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


def columns_of(measurement: Measurement, group: str) -> list[int]:
    """Columns of a group of perturbations."""
    return [column for column, p in enumerate(measurement.perturbations) if p.group == group]


def scale(measurement: Measurement, name: str) -> float:
    """The median threat of an image of another class: the unit in which threats are compared."""
    column = next(c for c, p in enumerate(measurement.perturbations) if p.name == "other_class")
    return max(float(numpy.median(measurement.threats[name][:, column])), 1e-12)


def separation(measurement: Measurement) -> Figure:
    """AUROCs with their intervals, in several comparisons and by severity."""
    result, styles = measurement.result, style(measurement.main)
    rows = {title: result[key] for title, key in COMPARISONS.items() if result.get(key)}
    rows |= {f"severity {level}": found for level, found in result["separation_by_severity"].items()}
    figure = Figure(figsize=(WIDTH * 0.75, 0.9 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for row, found in enumerate(rows.values()):
        shown = [name for name in measurement.main if name in found]
        for place, name in enumerate(shown):
            metrics = found[name]
            position = row + (place - (len(shown) - 1) / 2) * 0.17
            error = [[max(0.0, metrics["auroc"] - metrics["low"])], [max(0.0, metrics["high"] - metrics["auroc"])]]
            axes.errorbar(metrics["auroc"], position, xerr=error, markersize=4, linewidth=1, capsize=2, **styles[name])
    axes.axvline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("AUROC (0.5: chance, dotted)", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    _legend(figure, styles)
    return _open(figure)


def class_distance(measurement: Measurement) -> Figure | None:
    """PD-W over PD of moves to another class against the distance of the classes (the paper's Fig. 5)."""
    distances = measurement.class_distances
    if distances is None:
        return None
    column = next(c for c, p in enumerate(measurement.perturbations) if p.name == "other_class")
    plain, weighted = (measurement.threats[name][:, column].astype(float) for name in ("PD", "PD-W"))
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
    return _open(figure)


def distributions(measurement: Measurement) -> Figure:
    """A panel for each threat with a violin for each group; medians are marked."""
    names = measurement.main
    groups = [group for group in GROUP_NAMES if columns_of(measurement, group)]
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
        axes.set_title(f"{name}: AUROC {auroc:.3f}", fontsize=8)
    return _open(figure)


def severity(measurement: Measurement) -> Figure:
    """A panel for each corruption with a line for each threat, in units of an image of another class."""
    names, styles = measurement.main, style(measurement.main)
    types = _safe_types(measurement)
    rows = -(-len(types) // PANELS)
    figure = Figure(figsize=(WIDTH, 0.5 + 1.05 * rows), layout="constrained")
    grid = figure.subplots(rows, PANELS, sharex=True, sharey=True, squeeze=False)
    most = 0.0
    for place, axes in enumerate(grid.flat):
        if place >= len(types):
            axes.set_axis_off()
            continue
        title, columns = list(types.items())[place]
        levels = [measurement.perturbations[column].severity for column in columns]
        for name in names:
            means = measurement.threats[name][:, columns].mean(0) / scale(measurement, name)
            axes.plot(levels, means, markersize=2.5, linewidth=1, **styles[name])
            most = max(most, float(means.max()))
        axes.axhline(0.5, color="#999999", linewidth=0.6, linestyle=":")
        axes.set_title(textwrap.fill(title.replace("_", " "), 18), fontsize=6.5, pad=2)
        axes.tick_params(labelsize=6)
        axes.set_xticks(levels)
    grid[0][0].set_ylim(0, 1.05 * most)
    figure.supxlabel("severity; threats in units of an image of another class (median), dotted: half of it", fontsize=8)
    figure.supylabel("mean threat", fontsize=8)
    _legend(figure, styles)
    return _open(figure)


def heatmap(measurement: Measurement) -> Figure:
    """A panel for each threat: corruptions down, severities across, in units of an image of another class."""
    names, types = measurement.main, _safe_types(measurement)
    levels = sorted({p.severity for p in measurement.perturbations if p.group == "safe"})
    figure = Figure(figsize=(WIDTH, 0.7 + 0.165 * len(types)), layout="constrained")
    grid = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(grid, names, strict=True):
        cells = numpy.full((len(types), len(levels)), numpy.nan)
        for row, columns in enumerate(types.values()):
            for column in columns:
                place = levels.index(measurement.perturbations[column].severity)
                cells[row, place] = measurement.threats[name][:, column].mean() / scale(measurement, name)
        drawn = axes.imshow(cells, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for (row, place), value in numpy.ndenumerate(cells):
            if not numpy.isnan(value):
                ink = "white" if value < 0.55 else "black"
                axes.text(place, row, f"{value:.2f}", ha="center", va="center", fontsize=5, color=ink)
        axes.set_title(name, fontsize=8)
        axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels], fontsize=7)
        axes.tick_params(length=0)
    grid[0].set_yticks(range(len(types)), [title.replace("_", " ") for title in types], fontsize=6.5)
    figure.colorbar(drawn, ax=list(grid), shrink=0.5, pad=0.01).ax.tick_params(labelsize=7)
    figure.supxlabel("severity; 1 in the cells: as far as an image of another class (median)", fontsize=8)
    return figure


def _safe_types(measurement: Measurement) -> dict[str, list[int]]:
    types: dict[str, list[int]] = {}
    for column in columns_of(measurement, "safe"):
        types.setdefault(measurement.perturbations[column].name, []).append(column)
    return types


def _pooled(measurement: Measurement, name: str, group: str) -> numpy.ndarray:
    values = measurement.threats[name][:, columns_of(measurement, group)].ravel()
    return values[~numpy.isnan(values)]


def _legend(figure: Figure, styles: dict[str, dict[str, Any]]) -> None:
    handles = [Line2D([], [], markersize=4, linewidth=1, label=name, **look) for name, look in styles.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8)


def _open(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure
