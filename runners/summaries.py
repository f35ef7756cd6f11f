"""Results for people: a line or a table for each runner. Torch-free, so that a complete run is told at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foundations.results import markdown_table, wilson_interval
from foundations.settings import format_value

Result = dict[str, Any]

# The evaluations of `test`, by their names in result.json.
OTHER_ANCHORS = "N_adv_train_anchors"  # where an evaluation uses others than training did
EVALUATIONS = {
    "standard": "clean",
    "adv": "isotropic attack",
    "N_adv": "nonisotropic attack",
    OTHER_ANCHORS: "the same, anchors of training",
}


def compute_threat(result: Result) -> str:
    worst = min(result["coverage"], key=result["coverage"].get)
    radius, halves = result["inscribed_radius"], result.get("halves")
    stability = (
        f"\nthe two half-sets: rank correlation {halves['rank_correlation']:.3f}, median ratio "
        f"{halves['median_ratio']:.3f} over {halves['examples']} moves to another class"
        if halves
        else ""
    )
    return (
        f"{result['num_anchors']} anchors, {result['per_label']} of each class of {result['dataset_name']}; "
        f"lowest coverage (cosine similarity to an anchor) {result['coverage'][worst]:.3f}, class {worst}; "
        f"{result['dropped']['count']} ambiguous images left out\n"
        f"l2 ball inside {{PD <= t}}: radius {radius['median']:.3g} t (median of the test images), "
        f"{radius['lowest']:.3g} t to {radius['highest']:.3g} t{stability}"
    )


def train(result: Result) -> str:
    return f"trained {result['steps']} steps; test accuracy {result['final']['test_accuracy']:.4f}"


def test(result: Result) -> str:
    rows = []
    for name in EVALUATIONS:
        if name in result:
            accuracy, count = result[name]["accuracy"], result[name]["num_examples"]
            low, high = wilson_interval(accuracy, count)
            interval = f"{low:.3f}-{high:.3f}"
            rows.append([EVALUATIONS[name], describe_set(result[name]), f"{accuracy:.4f}", interval, str(count)])
    header = ["evaluation", "set", "accuracy", "95 % interval", "examples"]
    published = [result[name].get("published") for name in EVALUATIONS if name in result]
    if any(value is not None for value in published):
        header.append("RobustBench's")
        rows = [[*row, "-" if value is None else f"{value:.4f}"] for row, value in zip(rows, published, strict=True)]
    tables = [markdown_table(header, rows)]
    if len(result.get("N_adv", {}).get("curve", ())) > 1:
        tables.append(markdown_table(*grid_table(result["N_adv"])))
    doubts = [(EVALUATIONS[name], m) for name in EVALUATIONS for m in result.get(name, {}).get("warnings") or ()]
    tables += ["\n".join(f"* {words}, too high? {message}" for words, message in doubts)] if doubts else []
    return "\n\n".join(tables)


def grid_table(figures: Result) -> tuple[list[str], list[list[str]]]:
    """Header and rows: accuracy by threshold (down) and radius (across); the last of each stand alone."""
    cells = {(row["threshold"], row["radius"]): row["accuracy"] for row in figures["curve"] + figures["references"]}
    # None, a bound left out, goes last.
    thresholds, radii = (sorted({cell[i] for cell in cells}, key=lambda v: (v is None, v or 0)) for i in (0, 1))
    header = [f"{figures['norm']} / Linf", *("pixel box alone" if r is None else format_value(r) for r in radii)]
    names = ["radius alone" if t is None else format_value(t) for t in thresholds]
    shown = [[f"{cells[t, r]:.3f}" if (t, r) in cells else "-" for r in radii] for t in thresholds]
    return header, [[name, *row] for name, row in zip(names, shown, strict=True)]


def multi(result: Result) -> str:
    """A row for each child: its name, its headline figures, and how it ended."""
    children = result["children"]
    figures = [headline(child["result"]) if "result" in child else {} for child in children]
    columns = list(dict.fromkeys(name for row in figures for name in row))
    rows = [
        [child["name"], *(row.get(name, "-") for name in columns), child.get("error", "complete")]
        for child, row in zip(children, figures, strict=True)
    ]
    return markdown_table(["run", *columns, "status"], rows)


def evaluate_threat(result: Result) -> str:
    """How well each threat tells unsafe from safe changes."""
    columns = {
        "overall": "separation",
        "matched in l2": "separation_matched",
        "directions": "separation_directions",
        "morphs": "separation_morphs",
        "morphs, matched": "separation_morphs_matched",
    }
    shown = {title: result[key] for title, key in columns.items() if result.get(key)}

    def cell(found: Result, threat: str) -> str:
        return (
            f"{found[threat]['auroc']:.3f} [{found[threat]['low']:.3f}, {found[threat]['high']:.3f}]"
            if threat in found
            else "-"
        )

    rows = [[threat, *(cell(found, threat) for found in shown.values())] for threat in result["threats"]]
    return (
        f"AUROC of telling unsafe from safe changes of {result['num_examples']} images of {result['dataset_name']} "
        f"(95 % intervals; {result['num_matched_pairs']} matched pairs)\n{markdown_table(['threat', *shown], rows)}"
    )


def report(result: Result) -> str:
    counts = ", ".join(f"{count} {runner}" for runner, count in result["counts"].items())
    return f"report over {counts}: {result['page']}"


def download_pretrained(result: Result) -> str:
    """The models of the zoo with their published accuracies, and what became of each."""
    rows = [
        [
            model["name"],
            *("-" if model[key] is None else f"{model[key]:.4f}" for key in ("clean", "robust")),
            model["state"],
        ]
        for model in result["models"]
    ]
    return markdown_table(["model", "published clean", "published robust", "state"], rows)


SUMMARIES: dict[str, Callable[[Result], str]] = {
    "compute_threat": compute_threat,
    "evaluate_threat": evaluate_threat,
    "train": train,
    "multi_train": multi,
    "test": test,
    "multi_test": multi,
    "report": report,
    "download_pretrained": download_pretrained,
}


def headline(result: Result) -> dict[str, str]:
    """The figures of a run that a table over several runs shows."""
    if "final" in result:
        return {"test accuracy": f"{result['final']['test_accuracy']:.4f}"}
    return {shown: f"{result[name]['accuracy']:.4f}" for name, shown in EVALUATIONS.items() if name in result}


def describe_set(figures: Result) -> str:
    """The set of an attack: 'PD <= 0.1, Linf <= 0.3'."""
    if "norm" not in figures:
        return "-"
    radius = "" if figures["radius"] is None else f", Linf <= {figures['radius']:.4g}"
    return f"{figures['norm']} <= {figures['threshold']:.4g}{radius}"
