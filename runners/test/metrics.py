"""Fields of result.json for the evaluations of `test`, computed from their arrays; and the same as CSV."""

from __future__ import annotations

import math
from typing import Any

import numpy

from foundations.hparam_fields import format_value
from testing.evaluations import AttackEvaluation
from threat_specification.attacks.base import SLACK
from threat_specification.attacks.minimal_gauge import searched_gauges
from threat_specification.attacks.search import WHOLE_CURVE, Cell

GAUGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0)

BEYOND = 1 + SLACK[0]  # a point on the border, up to float32 rounding, is in the set

COLUMNS = ("cells", "correct", "broken_by", "gauge", "rounded", "forwards", "backwards")

Arrays = dict[str, numpy.ndarray]


def clean_metrics(arrays: Arrays) -> dict[str, Any]:
    """Accuracy without attack."""
    return {"accuracy": float(arrays["standard_correct"].mean())}


def ball_metrics(evaluation: AttackEvaluation, arrays: Arrays) -> dict[str, Any]:
    """Metrics of an l_p ball: accuracy, and the accuracy that remains after each attack, in order."""
    accuracy, norm, power = float(arrays["adv_correct"].mean()), evaluation.threat.name, evaluation.headline.threshold
    return {
        "accuracy": accuracy,
        "name": f"{norm}@{format_value(power)}",
        "threshold": power,
        "norm": norm,
        "radius": None,
        "attacks": robust_after(arrays["adv_broken_by"], list(evaluation.attacks)),
        "curve": [{"threshold": power, "radius": None, "accuracy": accuracy}],
        "accuracy_rounded": 1 - _share(arrays["adv_rounded"] | (arrays["adv_broken_by"] < 0)),
    }


def nonisotropic_metrics(evaluation: AttackEvaluation, arrays: Arrays, anchors_name: str, form: str) -> dict[str, Any]:
    """Metrics of a nonisotropic set: attacks, the grid of cells, references, and the curve over sets of one shape.

    anchors_name, form   of the threat: its anchors, and what is not as usual in its form
    The curve has the sizes that were searched: in others nothing would be found, and all would seem robust.
    """
    headline, cells = evaluation.headline, evaluation.cells
    of = {name: arrays[f"{evaluation.prefix}_{name}"] for name in COLUMNS}
    robust = dict(zip(cells, of["cells"].mean(0).tolist(), strict=True))
    smallest, largest = searched_gauges(evaluation.steps) if WHOLE_CURVE in evaluation.attacks else (1.0, 1.0)
    smallest = min(smallest, 1.0)  # the set itself is always searched
    bounded = [cell for cell in cells if math.isfinite(cell.threshold) and math.isfinite(cell.radius)]
    return {
        "accuracy": float(of["correct"].mean()),
        "name": f"{anchors_name}@{format_value(headline.threshold)},Linf{format_value(headline.radius)}",
        "threshold": headline.threshold,
        "norm": evaluation.threat.name,
        **({"form": form} if form else {}),
        "radius": headline.radius,
        "attacks": robust_after(of["broken_by"], list(evaluation.attacks)),
        "curve": [_row(cell, robust[cell]) for cell in bounded],
        "references": [_row(cell, robust[cell]) for cell in cells if cell not in bounded],
        "gauge_curve": [
            {"gauge": t, "accuracy": _share(of["gauge"] > t * BEYOND)} for t in GAUGES if smallest <= t <= largest
        ],
        "accuracy_rounded": 1 - _share(of["rounded"] | (of["broken_by"] < 0)),
        "passes": {
            "forward": float(of["forwards"].mean()),
            "backward": float(of["backwards"].mean()),
        },
    }


def robust_after(broken_by: numpy.ndarray, members: list[str]) -> dict[str, float]:
    """Accuracy that remains after each attack of the ensemble, in order."""
    return {name: _share((broken_by == 0) | (broken_by > number)) for number, name in enumerate(members, start=1)}


def grid_csv(metrics: dict[str, Any]) -> str:
    """CSV with the columns threshold,radius,accuracy; a field is empty if there is no such bound."""
    rows = [*metrics["curve"], *metrics["references"]]
    lines = [",".join("" if row[key] is None else repr(row[key]) for key in rows[0]) for row in rows]
    return "\n".join([",".join(rows[0]), *lines]) + "\n"


def gauge_csv(metrics: dict[str, Any]) -> str:
    """CSV with the columns gauge,accuracy, for the sets {PD <= gauge * threshold, l-inf <= gauge * radius}."""
    return (
        "\n".join(["gauge,accuracy", *(f"{row['gauge']!r},{row['accuracy']!r}" for row in metrics["gauge_curve"])])
        + "\n"
    )


def _row(cell: Cell, accuracy: float) -> dict[str, Any]:
    return {**cell.describe(), "accuracy": accuracy}


def _share(values: numpy.ndarray) -> float:
    return float(values.mean())


def accuracies(result: dict[str, Any]) -> dict[str, float]:
    """The main figure of each evaluation of a result."""
    found = {name: metrics["accuracy"] for name, metrics in result.items() if "accuracy" in _as_dict(metrics)}
    return {f"{name}_accuracy": accuracy for name, accuracy in found.items()}


def _as_dict(metrics: Any) -> dict[str, Any]:
    return metrics if isinstance(metrics, dict) else {}
