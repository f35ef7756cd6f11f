"""The figures of a report, in colours that colour-blind readers can distinguish."""

from __future__ import annotations

from textwrap import wrap
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from foundations.results import between, rounded, wilson_interval
from runners.plots import PALETTE
from runners.report.collect import FinishedRun, read_metrics
from runners.test.bracket import CERTIFIED
from runners.test.summary import EVALUATIONS, describe_set

WIDEST = 64  # characters of a line beside a chart

# Okabe and Ito's colours.
COLOURS = {
    "standard": "#0072B2",
    "corruption": "#56B4E9",
    "adv": "#E69F00",
    "N_adv": "#009E73",
    "N_adv_train_anchors": "#CC79A7",
    "N_adv_moves": "#D55E00",
}


def accuracy_bars(tests: list[FinishedRun]) -> Figure:
    """Bars for the accuracy of every tested model: clean, isotropic, nonisotropic, with 95 % intervals."""
    figure = Figure(figsize=(7, 1.2 + 0.75 * len(tests)))
    axes = figure.add_subplot()
    for row, run in enumerate(tests):
        names = [name for name in EVALUATIONS if name in run.result]
        for place, name in enumerate(names):
            _bar(axes, row + (place - (len(names) - 1) / 2) * 0.26, name, run.result[name])
    axes.set_yticks(range(len(tests)), _names(tests), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xlabel("accuracy")
    shown = [name for name in EVALUATIONS if any(name in run.result for run in tests)]
    handles = [Patch(color=COLOURS[name], label=EVALUATIONS[name]) for name in shown]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _names(tests: list[FinishedRun]) -> list[str]:
    """The label of each test, in lines; where their sets differ, or two have one label, with its sets and images."""
    labels = [run.label for run in tests]
    differ = any(
        len({describe_set(run.result[name]) for run in tests if name in run.result}) > 1 for name in EVALUATIONS
    )
    return [_lines(run) + (f"\n{_measured(run)}" if differ or labels.count(run.label) > 1 else "") for run in tests]


def _measured(run: FinishedRun) -> str:
    found = [run.result[name] for name in EVALUATIONS if name in run.result]
    sets = dict.fromkeys(describe_set(metrics) for metrics in found if "norm" in metrics)
    return "\n".join([*sets, f"{found[0]['num_examples']:,} images"])


def _lines(run: FinishedRun) -> str:
    """The label of a run in lines that are short enough to stand beside a chart."""
    name, _, apart = run.label.partition(" (")
    return "\n".join([name, *wrap(f"({apart}", WIDEST)]) if apart else name


def _bar(axes: Any, position: float, name: str, metrics: dict[str, Any]) -> None:
    accuracy = metrics["accuracy"]
    low, high = wilson_interval(accuracy, metrics["num_examples"])
    error = [[max(0.0, accuracy - low)], [max(0.0, high - accuracy)]]
    axes.barh(position, accuracy, 0.24, color=COLOURS[name])
    axes.errorbar(accuracy, position, xerr=error, color="#333333", capsize=2, linewidth=1)
    axes.text(min(high, 1) + 0.015, position, rounded(accuracy, 3), va="center", fontsize=8)


def brackets(tests: list[FinishedRun]) -> Figure:
    """A bar from what is certified to what attacks leave, for each test; a mark for the radius alone."""
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(tests)), layout="constrained")
    axes = figure.add_subplot()
    for row, run in enumerate(tests):
        found, attacked = run.result[CERTIFIED], run.result["N_adv"]["accuracy"]
        certified = found["accuracy"]
        axes.barh(row, attacked - certified, 0.5, left=certified, color=COLOURS["N_adv"], alpha=0.5)
        axes.plot([certified, attacked], [row, row], "|", color="#333333", markersize=16)
        axes.plot(found["box_accuracy"], row, "D", color=COLOURS["adv"], markersize=5)
        axes.text(attacked + 0.015, row, between(certified, attacked), va="center", fontsize=8)
    axes.set_yticks(range(len(tests)), [f"{_lines(run)}\n{describe_set(run.result[CERTIFIED])}" for run in tests])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2)
    axes.set_xlabel("accuracy: certified to attacked; diamond: certified by the radius alone")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def gauge_curves(results: list[tuple[str, dict[str, Any]]]) -> Figure:
    """Curves of accuracy inside growing sets of one shape: the headline set of each run scaled by t, with 95 % bands.

    results   (label, result.json of a test); a dotted line shows accuracy under the isotropic attack
    """
    sets = [describe_set(result["N_adv"]) for _, result in results]
    same = len(set(sets)) == 1
    figure = Figure(figsize=(7, 3.2 + 0.2 * len(results)), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, result) in enumerate(results):
        metrics = result["N_adv"]
        points = [(row["gauge"], row["accuracy"]) for row in metrics["gauge_curve"]]
        t, accuracy = (list(values) for values in zip(*points, strict=True))
        bands = [wilson_interval(value, metrics["num_examples"]) for value in accuracy]
        colour = f"C{number % 10}"
        name = label if same else f"{label}: t = 1 is {sets[number]}"
        axes.plot(t, accuracy, marker=".", color=colour, label=name)
        axes.fill_between(t, [low for low, _ in bands], [high for _, high in bands], color=colour, alpha=0.15)
        if "adv" in result:
            name = f"{label}: isotropic attack, {describe_set(result['adv'])}"
            axes.axhline(result["adv"]["accuracy"], color=colour, linestyle=":", linewidth=1, label=name)
    axes.axvline(1, color="#999999", linewidth=0.8)
    size = f"t: size of the set; t = 1 is {sets[0]}" if same else "t: size of the set"
    axes.set(xlabel=size, ylabel="accuracy", ylim=(0, 1.02))
    figure.legend(loc="outside lower center", fontsize=7, frameon=False)
    return figure


def radius_curves(metrics: dict[str, Any]) -> Figure:
    """Accuracy against the radius: with each threshold, and with the radius alone (dashed).

    metrics   those of a nonisotropic evaluation with several radii
    """
    rows = [row for row in metrics["curve"] + metrics["references"] if row["radius"] is not None]
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    thresholds = sorted({row["threshold"] for row in rows}, key=lambda value: (value is None, value or 0))
    for number, threshold in enumerate(thresholds):
        points = sorted((row["radius"], row["accuracy"]) for row in rows if row["threshold"] == threshold)
        radii, accuracy = (list(values) for values in zip(*points, strict=True))
        look: dict[str, Any] = {"color": "#000000", "linestyle": "--", "label": "radius alone"}
        if threshold is not None:
            look = {"color": PALETTE[number % len(PALETTE)], "label": f"{metrics['norm']} <= {threshold:.4g}"}
        axes.plot(radii, accuracy, marker=".", **look)
        bands = [wilson_interval(value, metrics["num_examples"]) for value in accuracy]
        axes.fill_between(radii, [low for low, _ in bands], [high for _, high in bands], color=look["color"], alpha=0.1)
    axes.set(xlabel="radius (l-inf)", ylabel="accuracy", ylim=(0, 1.02))
    axes.legend(fontsize=7, frameon=False)
    return figure


def training_curves(trainings: list[FinishedRun]) -> Figure:
    """Curves of loss and test accuracy of every training run over its epochs."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    panels = dict(zip(("train_loss", "test_accuracy"), figure.subplots(1, 2), strict=True))
    for run in trainings:
        rows = read_metrics(run)
        for name, axes in panels.items():
            points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
            marker = "." if len(points) == 1 else None  # one epoch is no line
            axes.plot([x for x, _ in points], [y for _, y in points], linewidth=1, marker=marker, label=run.label)
    panels["train_loss"].set(xlabel="epoch", ylabel="training loss", yscale="log")
    panels["test_accuracy"].set(xlabel="epoch", ylabel="test accuracy")
    if 1 < len(trainings) <= 10:
        panels["test_accuracy"].legend(fontsize=7, frameon=False)
    return figure
