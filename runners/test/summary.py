"""The figures of a test run: names of its evaluations, and tables as text. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foundations.hparam_fields import format_value
from foundations.results import markdown_table, percent, rounded, wilson_text
from runners.test.audit_table import audit_table
from runners.test.bracket import CERTIFIED, certified_table
from runners.test.corruption_desc import corruption_summary

# The evaluations of `test`, by their names in result.json.
OTHER_ANCHORS = "N_adv_train_anchors"  # with the anchors of training, if the evaluation uses others
MOVES = "N_adv_moves"  # in the set of mixtures of safe changes plus noise
AUDIT = "audit"  # each attack of N_adv alone; has a table of its own
EXACT = "exact"  # what a program proves in the set of N_adv; has a table of its own
EVALUATIONS = {
    "standard": "clean",
    "corruption": "corruptions",
    "adv": "isotropic attack",
    "N_adv": "nonisotropic attack",
    OTHER_ANCHORS: "the same, anchors of training",
    MOVES: "safe changes and noise",
}


def hardest_last(results: Sequence[dict[str, Any]]) -> list[str]:
    """The evaluations that decide an order of models, the hardest last.

    Those that a model may have for reasons of its own decide only if all have them: only one trained under other
    anchors has a figure under these.
    """
    optional = {name for name in (OTHER_ANCHORS, MOVES) if not all(name in result for result in results)}
    return [name for name in EVALUATIONS if name not in optional and any(name in result for result in results)]


def of_result(result: dict[str, Any]) -> str:
    """A table with one row for each evaluation, tables of their own, and reasons why figures may be too high."""
    doubts = [(EVALUATIONS[name], m) for name in EVALUATIONS for m in result.get(name, {}).get("warnings") or ()]
    parts = [
        _evaluations_table({name: result[name] for name in EVALUATIONS if name in result}),
        result.get("prepared_otherwise", ""),
        corruption_summary(result),
        markdown_table(*grid_table(result["N_adv"])) if len(result.get("N_adv", {}).get("curve", ())) > 1 else "",
        binding(result.get("N_adv", {})),
        moves_table(result.get(MOVES)),
        then_project_table([("", result)]),
        exact_table(result),
        certified_table(result, describe_set(result.get(CERTIFIED, {}))),
        audit_table(result.get(AUDIT)),
        "\n".join(f"* {words}, too high? {message}" for words, message in doubts),
    ]
    return "\n\n".join(filter(None, parts))


def _evaluations_table(evaluations: dict[str, dict[str, Any]]) -> str:
    header, rows = ["evaluation", "set", "accuracy", "95 % interval", "examples"], []
    for name, found in evaluations.items():
        accuracy, count = found["accuracy"], found["num_examples"]
        interval = wilson_text(accuracy, count)
        rows.append([EVALUATIONS[name], describe_set(found), rounded(accuracy), interval, str(count)])
    published = [found.get("published") for found in evaluations.values()]
    if any(value is not None for value in published):
        header.append("RobustBench's")
        rows = [[*row, "-" if value is None else rounded(value)] for row, value in zip(rows, published, strict=True)]
    return markdown_table(header, rows)


def headline(result: dict[str, Any]) -> dict[str, str]:
    """The accuracies of a run by what they are shown as, and its mCE."""
    shown = {shown: rounded(result[name]["accuracy"]) for name, shown in EVALUATIONS.items() if name in result}
    shown |= {CERTIFIED: rounded(result[CERTIFIED]["accuracy"])} if CERTIFIED in result else {}
    return shown | ({"mCE": rounded(result["corruption"]["mCE"])} if "mCE" in result.get("corruption", {}) else {})


def moves_table(metrics: dict[str, Any] | None) -> str:
    """Accuracy in the set of mixtures of safe changes plus noise, beside its parts alone; "" without it."""
    if metrics is None:
        return ""
    threat, radius = f"{metrics['norm']} <= {metrics['threshold']:.4g}", f"{metrics['radius']:.4g}"
    rows = {
        f"one safe change, mean of {len(metrics['single'])}": metrics["single_mean"],
        "one safe change, the worst for each image": metrics["single_worst"],
        f"mixture, {threat}": metrics["mixture_alone"],
        f"noise up to {radius}, {threat}": metrics["noise_alone"],
        f"noise up to {radius}": metrics["ball"],
        f"mixture and noise, {threat}": metrics["accuracy"],
        "mixture and noise": metrics["without_threat"],
        "mixture": metrics["mixture_without_threat"],
    }
    table = markdown_table(["changed by", "accuracy"], [[name, rounded(value)] for name, value in rows.items()])
    return f"{table}\n\nthe threat is at its threshold for {percent(metrics['binding'])} of the adversarial examples"


def exact_table(result: dict[str, Any]) -> str:
    """Accuracy proven by programs beside that under attack; "" without it."""
    found = result.get(EXACT)
    if found is None:
        return ""
    count, attacked = found["num_examples"], result["N_adv"]["accuracy"]
    shares = {"proven robust": found["accuracy"], "robust or undecided": found["upper"], "after all attacks": attacked}
    rows = [[name, rounded(share), wilson_text(share, count)] for name, share in shares.items()]
    table = markdown_table([f"exact answers, {describe_set(found)}", "share", "95 % interval"], rows)
    return (
        f"{table}\n\n{found['undecided']} of {count} undecided (out of time, or too close for the solver or float32), "
        f"{found['missed_by_attacks']} broken that no attack broke; {found['seconds_per_example']:.2f} s an image"
    )


HARDLY = 0.02  # a difference of accuracies that hardly matters


def binding(metrics: dict[str, Any]) -> str:
    """A sentence on whether the threshold matters at the radius; "" if the radius alone was not attacked."""
    alone = next(
        (
            row["accuracy"]
            for row in metrics.get("references", ())
            if row["threshold"] is None and row["radius"] == metrics["radius"] is not None
        ),
        None,
    )
    if alone is None:
        return ""
    change, name = metrics["accuracy"] - alone, metrics["norm"]
    # Twice the standard error of the difference: only images that are robust in one set and not in the other count.
    if change < HARDLY:
        verdict = "the threat hardly matters; the radius decides"
    elif change > 2 * (change / metrics["num_examples"]) ** 0.5:
        verdict = "the threat binds"
    else:
        verdict = "too few images to tell whether the threat binds"
    return (
        f"at radius {metrics['radius']:.4g} the threshold of {name} changes {rounded(change)} of accuracy "
        f"(radius alone: {rounded(alone)}): {verdict}"
    )


def grid_table(metrics: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of accuracy by threshold (down) and radius (across); the last row and column omit one bound."""
    cells = {(row["threshold"], row["radius"]): row["accuracy"] for row in metrics["curve"] + metrics["references"]}
    # None (no bound) is sorted last.
    thresholds, radii = (sorted({cell[i] for cell in cells}, key=lambda v: (v is None, v or 0)) for i in (0, 1))
    header = [f"{metrics['norm']} / Linf", *("pixel box alone" if r is None else format_value(r) for r in radii)]
    names = ["radius alone" if t is None else format_value(t) for t in thresholds]
    shown = [[rounded(cells[t, r], 3) if (t, r) in cells else "-" for r in radii] for t in thresholds]
    return header, [[name, *row] for name, row in zip(names, shown, strict=True)]


def describe_set(metrics: dict[str, Any]) -> str:
    """The set of an attack, such as 'PD <= 0.1, Linf <= 0.3'."""
    if "norm" not in metrics:
        return "-"
    radius = "" if metrics["radius"] is None else f", Linf <= {metrics['radius']:.4g}"
    form = f" ({metrics['form']})" if metrics.get("form") else ""
    return f"{metrics['norm']}{form} <= {metrics['threshold']:.4g}{radius}"


NOT_ADAPTIVE = "attack, then project: not adaptive, an upper bound; --N_adv_eval attacks inside the set"


def then_project_table(results: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Accuracies after the projection beside those of attacks inside the same set, as in the paper's Table 3.

    "" if no model was attacked and then projected.

    results   (name, result.json) of the models; they are named if there are several
    """
    projected = [(name, result) for name, result in results if "then_project" in result.get("adv", {})]
    if not projected:
        return ""
    rows = [{"model": name, **row} for name, result in projected for row in _then_project_rows(result)]
    columns = dict.fromkeys(column for row in rows for column in row)
    header = [column for column in columns if column != "model" or len(results) > 1]
    table = markdown_table(header, [[row.get(column, "-") for column in header] for row in rows])
    return f"{NOT_ADAPTIVE}\n{table}"


def _then_project_rows(result: dict[str, Any]) -> list[dict[str, str]]:
    """A row for the ball alone, and one for each set."""
    ball = result["adv"]
    rows = [_then_project_row(result, name, found) for name, found in ball["then_project"].items()]
    alone = dict.fromkeys(rows[0], "-") | {"set": describe_set(ball), "accuracy": rounded(ball["accuracy"])}
    return [alone | {"published": _published(ball.get("published_then_project"))}, *rows]


def _then_project_row(result: dict[str, Any], name: str, found: dict[str, Any]) -> dict[str, str]:
    form, threshold = name.upper().replace("_", "-"), found["threshold"]
    inside: dict[str, Any] = result.get("N_adv") or {"norm": "", "threshold": None, "radius": None}
    same_set = (inside["norm"], inside["threshold"], inside["radius"]) == (form, threshold, result["adv"]["threshold"])
    return {
        "set": f"{form} <= {threshold:.4g}",
        "accuracy": rounded(found["accuracy"]),
        "inside it and the ball": rounded(inside["accuracy"]) if same_set else "-",
        "too high by": f"{found['accuracy'] - inside['accuracy']:+.4f}" if same_set else "-",
        "mean threat before": f"{found['threat_before']:.3f}",
        "after": f"{found['threat_after']:.3f}",
        **{
            f"mean {other} {when}": f"{mean[when]:.3f}"
            for other, mean in found.get("distances", {}).items()
            for when in ("before", "after")
        },
        "published": _published(found.get("published")),
    }


def _published(accuracy: float | None) -> str:
    return "-" if accuracy is None else rounded(accuracy, 2)
