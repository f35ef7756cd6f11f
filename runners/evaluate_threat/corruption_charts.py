"""Charts of corruptions by name, category and severity."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from runners.evaluate_threat.charts import GROUP_COLOURS, WIDTH, legend, style, without_frame
from runners.evaluate_threat.panels import CELL, Panel
from runners.plots import PALETTE
from runners.sheets import Labels, Sheet
from threat_specification.perturbations.registry import CATEGORIES, OTHER

if TYPE_CHECKING:
    from runners.evaluate_threat.measurement import Measurement

PANELS = 6  # panels in a row
ORDER = (*CATEGORIES, OTHER)
# The colour of unsafe changes stays theirs.
COLOURS = dict(zip(ORDER, (colour.replace(GROUP_COLOURS["unsafe"], "#7A4EAB") for colour in PALETTE), strict=True))
UNSAFE = "image of another class"
# Where the paper's Fig. 3 divides the plane: half of the way to another image, and half of the range of pixels.
QUADRANTS = {"PD": 1.0, "Linf": 0.5, "DreamSim": 0.25}
REGIONS = {"background": "#56B4E9", "foreground": "#D55E00"}


def types_of(measurement: Measurement) -> dict[str, list[int]]:
    """Safe perturbation -> its columns, by category; the order within a category is that of the measurement."""
    types: dict[str, list[int]] = {}
    for column in sorted(measurement.columns("safe"), key=lambda c: ORDER.index(measurement.perturbations[c].category)):
        types.setdefault(measurement.perturbations[column].name, []).append(column)
    return types


def severity(measurement: Measurement) -> Figure:
    """A panel for each corruption with a line for each threat, in units of an image of another class."""
    names, styles, types = measurement.main, style(measurement.main), types_of(measurement)
    means = {name: measurement.threats[name].mean(0) / measurement.unit(name) for name in names}
    severities = numpy.array([perturbation.severity for perturbation in measurement.perturbations])
    safe = measurement.columns("safe")
    most = 1.05 * max(float(numpy.nanmax(found[safe], initial=0)) for found in means.values())
    sheet = Sheet(-(-len(types) // PANELS), PANELS, CELL, corner=(0.42, 0.15), rest=(0.05, 0.45))
    levels = numpy.unique(severities[safe])
    panels = [Panel(sheet.cell(place), levels, most or 1.0) for place in range(len(types))]
    for name in names:
        lines: list[Any] = []
        for panel, columns in zip(panels, types.values(), strict=True):
            lines += [panel.points(severities[columns], means[name][columns]), [[numpy.nan, numpy.nan]]]
        # One line for all panels, with gaps between them.
        sheet.axes.plot(*numpy.concatenate(lines).T, markersize=2.5, linewidth=1, **styles[name])
    for place, (panel, title) in enumerate(zip(panels, types, strict=True)):
        panel.write(
            sheet.axes,
            textwrap.fill(title.replace("_", " "), 18),
            across=place + PANELS >= len(types),
            up=place % PANELS == 0,
        )
    frames = [line for panel in panels for line in panel.frame()]
    sheet.axes.add_collection(LineCollection(frames, colors="black", linewidths=0.8))
    halves = [panel.half() for panel in panels if panel.most > 0.5]
    sheet.axes.add_collection(LineCollection(halves, colors="#999999", linewidths=0.6, linestyles=":"))
    figure = sheet.finished()
    figure.supxlabel("severity; threats in units of an image of another class (median), dotted: half of it", fontsize=8)
    figure.supylabel("mean threat", x=0.005, fontsize=8)
    legend(figure, styles)
    return figure


def heatmap(measurement: Measurement) -> Figure:
    """A panel for each threat: corruptions down, severities across, in units of an image of another class."""
    figure, drawn = _heatmaps(measurement, {name: measurement.unit(name) for name in measurement.main}, most=1)
    figure.colorbar(drawn, ax=figure.axes, location="bottom", shrink=0.3, pad=0.01).ax.tick_params(labelsize=7)
    figure.supxlabel("severity; 1 in the cells: as far as an image of another class (median)", fontsize=8)
    return figure


def heatmap_raw(measurement: Measurement) -> Figure:
    """The same in the threats' own units (the paper's Fig. 11); each panel has its own range of colours."""
    figure, _ = _heatmaps(measurement, dict.fromkeys(measurement.main, 1.0), most=None)
    figure.supxlabel(
        "severity; mean threats in their own units, colours from 0 to the largest of the panel", fontsize=8
    )
    return figure


def _heatmaps(measurement: Measurement, units: dict[str, float], most: float | None) -> tuple[Figure, Any]:
    """A panel for each threat, with a line between the categories; returns the figure, and the last panel's image."""
    types = types_of(measurement)
    levels = sorted({p.severity for p in measurement.perturbations if p.group == "safe"})
    figure = Figure(figsize=(WIDTH * 1.1, 0.9 + 0.165 * len(types)), layout="constrained")
    grid = figure.subplots(1, len(units), squeeze=False)[0]
    for axes, (name, unit) in zip(grid, units.items(), strict=True):
        cells = numpy.full((len(types), len(levels)), numpy.nan)
        for row, columns in enumerate(types.values()):
            for column in columns:
                place = levels.index(measurement.perturbations[column].severity)
                cells[row, place] = measurement.threats[name][:, column].mean() / unit
        top = most or max(float(numpy.nanmax(cells)), 1e-12)
        drawn = axes.imshow(cells, cmap="cividis", vmin=0, vmax=top, aspect="auto")
        known = {(place, row): value for (row, place), value in numpy.ndenumerate(cells) if not numpy.isnan(value)}
        inks = ["white" if value < 0.55 * top else "black" for value in known.values()]
        Labels(axes, list(known), [_short(value) for value in known.values()], inks, size=4.5)
        axes.set_title(name, fontsize=8)
        axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels], fontsize=7)
        axes.set_yticks([])
        axes.tick_params(length=0)
    grid[0].set_yticks(range(len(types)), [title.replace("_", " ") for title in types], fontsize=6.5)
    _divide(grid, [measurement.perturbations[columns[0]].category for columns in types.values()])
    return figure, drawn


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _divide(grid: Any, categories: list[str]) -> None:
    """Lines between the categories of the rows, and their names at the right."""
    for category in dict.fromkeys(categories):
        first, count = categories.index(category), categories.count(category)
        for axes in grid:
            axes.axhline(first - 0.5, color="white", linewidth=2)
        place = (1.04, first + count / 2 - 0.5)
        grid[-1].annotate(category, place, xycoords=("axes fraction", "data"), va="center", fontsize=7)


def quadrants(measurement: Measurement) -> Figure:
    """Mean PD against mean l-inf, and against perceptual distances (the paper's Fig. 3).

    One mark for each corruption and severity, the larger the more severe. Lines divide the plane where the paper does.
    """
    others = ["Linf", *(name for name in measurement.main if name not in ("PD", "PD-W", "PD-S", "L2", "Linf", "SSIM"))]
    figure = Figure(figsize=(WIDTH * min(1.0, 0.55 * len(others)), 3.1), layout="constrained")
    for axes, other in zip(figure.subplots(1, len(others), sharey=True, squeeze=False)[0], others, strict=True):
        columns = measurement.columns("safe")
        safe = [measurement.perturbations[column] for column in columns]
        at = [measurement.threats[name][:, columns].mean(0) for name in (other, "PD")]
        colours = [COLOURS[p.category] for p in safe]
        axes.scatter(*at, s=[6 + 7 * p.severity for p in safe], color=colours, alpha=0.7, linewidth=0)
        column = measurement.other_class
        axes.scatter(
            *(measurement.threats[name][:, column].mean() for name in (other, "PD")),
            s=90,
            marker="*",
            color=GROUP_COLOURS["unsafe"],
        )
        axes.axhline(QUADRANTS["PD"], color="#999999", linewidth=0.8, linestyle=":")
        if (line := QUADRANTS.get(other.split(":")[0])) is not None:
            axes.axvline(line, color="#999999", linewidth=0.8, linestyle=":")
        axes.set_xlabel(f"mean {other}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("mean PD", fontsize=8)
    shown = [
        kind for kind in ORDER if kind in {measurement.perturbations[c].category for c in measurement.columns("safe")}
    ]
    handles = [Line2D([], [], marker="o", linestyle="", color=COLOURS[kind], label=kind) for kind in shown]
    handles.append(Line2D([], [], marker="*", linestyle="", color=GROUP_COLOURS["unsafe"], label=UNSAFE))
    figure.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False, fontsize=7)
    return without_frame(figure)


def regions(measurement: Measurement) -> Figure | None:
    """PD and PD-S of changes of the object alone and of the background alone, by category (the paper's Fig. 4)."""
    if not measurement.columns("background"):
        return None
    kinds = {UNSAFE if measurement.perturbations[c].category == "" else measurement.perturbations[c].category
             for c in measurement.columns("background")}  # fmt: skip
    rows = [kind for kind in (*ORDER, UNSAFE) if kind in kinds]
    figure = Figure(figsize=(WIDTH, 0.9 + 0.32 * len(rows)), layout="constrained")
    for axes, threat in zip(figure.subplots(1, 2, sharey=True), ("PD", "PD-S"), strict=True):
        for region, colour in REGIONS.items():
            for row, kind in enumerate(rows):
                low, median, high = numpy.quantile(_pooled(measurement, threat, region, kind), (0.25, 0.5, 0.75))
                at = row + (0.14 if region == "foreground" else -0.14)
                axes.plot([low, high], [at, at], color=colour, linewidth=4, alpha=0.35, solid_capstyle="butt")
                axes.plot(median, at, "o", color=colour, markersize=4)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.set_title(threat, fontsize=8)
        axes.set_xlabel("threat: median and middle half of the images", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_xlim(left=0)
    figure.axes[0].invert_yaxis()
    handles = [Line2D([], [], marker="o", linestyle="", color=colour, label=f"{region} changes alone")
               for region, colour in REGIONS.items()]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return without_frame(figure)


def _pooled(measurement: Measurement, threat: str, region: str, kind: str) -> numpy.ndarray:
    wanted = "" if kind == UNSAFE else kind
    columns = [c for c in measurement.columns(region) if measurement.perturbations[c].category == wanted]
    return measurement.threats[threat][:, columns].ravel()
