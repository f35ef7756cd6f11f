"""Comparison of several evaluations: a table, a figure, and paired tests between models."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from foundations.files import write_text
from foundations.results import csv_table, markdown_table, wilson_interval
from runners.plots import write_figure
from runners.test.desc import EVALUATIONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMES = 15

Child = dict[str, Any]  # an entry of `children` in result.json of a multi_* run


def write_leaderboard(folder: Path, root: Path, children: list[Child]) -> dict[str, Any]:
    """Write leaderboard.csv, .md and .png over the children that succeeded; returns its fields of result.json."""
    done = [child for child in children if "result" in child]
    names = [name for name in EVALUATIONS if any(name in child["result"] for child in done)]
    if not names:
        return {}
    # The hardest evaluation decides the order.
    done.sort(key=lambda child: -child["result"].get(names[-1], {}).get("accuracy", -1))
    header = ["model", *(f"{name}_{what}" for name in names for what in ("accuracy", "low", "high"))]
    rows = [[child["name"], *_cells(child["result"], names)] for child in done]
    tests = paired_tests(root, done, names)
    write_text(folder / "leaderboard.csv", csv_table([header, *rows]))
    write_text(folder / "leaderboard.md", _markdown(header, rows, tests))
    correlation = rank_correlation(done)
    if correlation is not None:
        write_figure(folder / "leaderboard.png", scatter(done))
    return {"rank_correlation": correlation, "paired_tests": tests}


def _cells(result: dict[str, Any], names: list[str]) -> list[str]:
    cells = []
    for name in names:
        if name not in result:
            cells += ["", "", ""]
            continue
        accuracy, count = result[name]["accuracy"], result[name]["num_examples"]
        cells += [f"{value:.4f}" for value in (accuracy, *wilson_interval(accuracy, count))]
    return cells


def _markdown(header: list[str], rows: list[list[str]], tests: list[dict[str, Any]]) -> str:
    parts = [markdown_table(header, rows)]
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
    from scipy.stats import binomtest

    arrays = [dict(numpy.load(root / child["directory"] / "examples.npz", allow_pickle=False)) for child in children]
    tests = []
    for name, (i, j) in itertools.product(names, itertools.combinations(range(len(children)), 2)):
        column = f"{name}_correct"
        if column not in arrays[i] or column not in arrays[j]:
            continue
        _, first, second = numpy.intersect1d(arrays[i]["index"], arrays[j]["index"], return_indices=True)
        a, b = arrays[i][column][first], arrays[j][column][second]
        only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
        differ = only_first + only_second
        tests.append(
            {
                "evaluation": name,
                "first": children[i]["name"],
                "second": children[j]["name"],
                "only_first": only_first,
                "only_second": only_second,
                "p": float(binomtest(only_first, differ).pvalue) if differ else 1.0,
            }
        )
    return tests


def rank_correlation(children: list[Child]) -> float | None:
    """Spearman's rank correlation of isotropic and nonisotropic accuracy.

    None with fewer than 3 models, or if one of the two is constant.
    """
    from scipy.stats import spearmanr

    pairs = _pairs(children)
    if len(pairs) < 3 or any(len({pair[i] for pair in pairs}) == 1 for i in (0, 1)):
        return None
    return float(spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic)


def scatter(children: list[Child]) -> Figure:
    """Scatter plot of nonisotropic against isotropic accuracy, one point per model; the points are named if few."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=1, zorder=0)
    for child in children:
        if {"adv", "N_adv"} <= child["result"].keys():
            point = child["result"]["adv"]["accuracy"], child["result"]["N_adv"]["accuracy"]
            axes.scatter(*point, color="#0072B2")
            if len(children) <= MOST_NAMES:
                axes.annotate(child["name"], point, textcoords="offset points", xytext=(5, 5), fontsize=7)
    axes.set(xlabel="accuracy under isotropic attack", ylabel="accuracy under nonisotropic attack")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return figure


def _pairs(children: list[Child]) -> list[tuple[float, float]]:
    results = [child["result"] for child in children]
    return [(r["adv"]["accuracy"], r["N_adv"]["accuracy"]) for r in results if {"adv", "N_adv"} <= r.keys()]
