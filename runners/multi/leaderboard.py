"""Comparison of several evaluations: a table, a figure, and paired tests between models."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from foundations.files import write_text
from foundations.results import csv_table, markdown_table, rounded, wilson_interval
from runners.paired import paired
from runners.plots import PALETTE, write_figure
from runners.test.summary import EVALUATIONS, hardest_last, then_project_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMES = 15
MARKERS = "osD^vPX*<>"  # with the palette's colours, no two of the named models look alike

Child = dict[str, Any]  # an entry of `children` in result.json of a multi_* run
Pair = tuple[str, str]

# The accuracies that are drawn against one another.
PAIRS: tuple[Pair, ...] = (("standard", "adv"), ("standard", "N_adv"), ("adv", "N_adv"))
WORDS = {"standard": "on clean images", "adv": "under isotropic attack", "N_adv": "under nonisotropic attack"}


def write_leaderboard(folder: Path, root: Path, children: list[Child]) -> dict[str, Any]:
    """Write leaderboard.csv, .md and .png over the children that succeeded; returns its fields of result.json."""
    done = [child for child in children if "result" in child]
    names = [name for name in EVALUATIONS if any(name in child["result"] for child in done)]
    if not names:
        return {}
    # The hardest evaluation decides the order.
    hardest = hardest_last([child["result"] for child in done])[-1]
    done.sort(key=lambda child: -child["result"].get(hardest, {}).get("accuracy", -1))
    header = ["model", *(f"{name}_{what}" for name in names for what in ("accuracy", "low", "high"))]
    rows = [[child["name"], *_cells(child["result"], names)] for child in done]
    tests = paired_tests(root, done, names)
    write_text(folder / "leaderboard.csv", csv_table([header, *rows]))
    projected = then_project_table([(child["name"], child["result"]) for child in done])
    write_text(folder / "leaderboard.md", _markdown(header, rows, tests, projected))
    correlations = {" against ".join(pair): rank_correlation(done, pair) for pair in PAIRS}
    if can_be_compared(done):
        write_figure(folder / "leaderboard.png", lambda: scatter(done))
    headline = correlations["adv against N_adv"]
    return {"rank_correlation": headline, "rank_correlations": correlations, "paired_tests": tests}


def _cells(result: dict[str, Any], names: list[str]) -> list[str]:
    cells = []
    for name in names:
        if name not in result:
            cells += ["", "", ""]
            continue
        accuracy, count = result[name]["accuracy"], result[name]["num_examples"]
        cells += [rounded(value) for value in (accuracy, *wilson_interval(accuracy, count))]
    return cells


def _markdown(header: list[str], rows: list[list[str]], tests: list[dict[str, Any]], projected: str) -> str:
    parts = [markdown_table(header, rows), *filter(None, [projected])]
    if tests:
        shown = [
            [t["evaluation"], t["first"], t["second"], str(t["only_first"]), str(t["only_second"]), f"{t['p']:.3g}"]
            for t in tests
        ]
        header = ["evaluation", "first", "second", "only first right", "only second right", "McNemar p"]
        parts.append(markdown_table(header, shown))
    return "\n\n".join(parts) + "\n"


def paired_tests(root: Path, children: list[Child], names: list[str]) -> list[dict[str, Any]]:
    """McNemar's exact test for every pair of models, on the examples that both were evaluated on."""
    arrays = [dict(numpy.load(root / child["directory"] / "examples.npz", allow_pickle=False)) for child in children]
    tests = []
    for name, (i, j) in itertools.product(names, itertools.combinations(range(len(children)), 2)):
        if found := paired(arrays[i], arrays[j], f"{name}_correct"):
            named = {"evaluation": name, "first": children[i]["name"], "second": children[j]["name"]}
            tests.append(named | dataclasses.asdict(found))
    return tests


def rank_correlation(children: list[Child], pair: Pair) -> float | None:
    """Spearman's rank correlation of two accuracies.

    None with fewer than 3 models, or if one of the two is constant.
    """
    from scipy.stats import spearmanr

    points = _points(children, pair)
    if len(points) < 3 or any(len({point[i] for point in points}) == 1 for i in (0, 1)):
        return None
    return float(spearmanr([a for a, _ in points], [b for _, b in points]).statistic)


def can_be_compared(children: list[Child]) -> bool:
    """True if some pair of accuracies is there for several models."""
    return any(len(_points(children, pair)) > 1 for pair in PAIRS)


def scatter(children: list[Child]) -> Figure:
    """A panel for each pair of accuracies that several models have, one mark a model, with 95 % intervals.

    Models are named if they are few. Below the diagonal, the second accuracy is the lower one.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    pairs = [pair for pair in PAIRS if len(_points(children, pair)) > 1]
    groups = _groups(children)
    legend = 0.18 * -(-len(groups) // 2) if len(groups) > 1 else 0  # inches of two columns: panels keep their size
    figure = Figure(figsize=(3.4 * len(pairs), 3.6 + legend), layout="constrained")
    grid = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axes, (first, second) in zip(grid, pairs, strict=True):
        axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=1, zorder=0)
        for look, members in groups:
            both = [child["result"] for child in members if {first, second} <= child["result"].keys()]
            if both:
                _mark(axes, [of[first] for of in both], [of[second] for of in both], look)
        axes.set(xlabel=f"accuracy {WORDS[first]}", ylabel=f"accuracy {WORDS[second]}")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    if len(groups) > 1:
        handles = [Line2D([], [], linestyle="", label=members[0]["name"], **look) for look, members in groups]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _groups(children: list[Child]) -> list[tuple[dict[str, Any], list[Child]]]:
    """Looks, and the models that have each: a look of its own for every model, if they are few enough to name.

    Only the outlines are drawn: of few examples, models often have equal accuracies, and none hides another.
    """
    if len(children) > MOST_NAMES:
        return [({"color": PALETTE[0], "marker": "o", "markerfacecolor": "none"}, children)]
    return [
        ({"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "markerfacecolor": "none"}, [child])
        for i, child in enumerate(children)
    ]


def _mark(axes: Any, first: list[dict[str, Any]], second: list[dict[str, Any]], look: dict[str, Any]) -> None:
    """Marks of some models, with the interval of either accuracy."""
    places, errors = [], []
    for column in (first, second):
        known = [(of["accuracy"], *wilson_interval(of["accuracy"], of["num_examples"])) for of in column]
        places.append([accuracy for accuracy, _, _ in known])
        errors.append([[max(0.0, a - low) for a, low, _ in known], [max(0.0, high - a) for a, _, high in known]])
    axes.errorbar(*places, xerr=errors[0], yerr=errors[1], markersize=6, linewidth=0.6, linestyle="", **look)


def _points(children: list[Child], pair: Pair) -> list[tuple[float, float]]:
    """The two accuracies of every model that has both."""
    results = [child["result"] for child in children]
    return [(r[pair[0]]["accuracy"], r[pair[1]]["accuracy"]) for r in results if {*pair} <= r.keys()]
