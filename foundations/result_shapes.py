"""What result.json holds, by runner: the fields that others read. A file that was edited or damaged is refused by them.

A shape is a type or several; a check with its words; a dictionary of fields, more of which may be there; `Each` for a
dictionary of any names; a list with the shape of its items; `Maybe` for what can be missing or null.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Is:
    """A value that passes a check."""

    what: str
    check: Callable[[Any], bool]


@dataclass(frozen=True)
class Each:
    """A dictionary with any names."""

    shape: Any


@dataclass(frozen=True)
class Maybe:
    """May be missing, or null."""

    shape: Any


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


NUMBER = Is("a number", _is_number)
FRACTION = Is("a number in [0, 1]", lambda value: _is_number(value) and 0 <= value <= 1)
COUNT = Is("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0)
TEXT = Is("text", lambda value: isinstance(value, str))
FLAG = Is("true or false", lambda value: isinstance(value, bool))

AUROC = {"auroc": FRACTION, "low": FRACTION, "high": FRACTION}
AGREEMENT = {"rank_correlation": NUMBER, "median_ratio": NUMBER}
CELL = {"threshold": Maybe(NUMBER), "radius": Maybe(NUMBER), "accuracy": FRACTION}
EVALUATION = {"num_examples": COUNT, "accuracy": FRACTION, "published": Maybe(NUMBER)}
ATTACK = EVALUATION | {
    "threshold": NUMBER,
    "norm": TEXT,
    "radius": Maybe(NUMBER),
    "attacks": Each(FRACTION),
    "warnings": Maybe([TEXT]),
}
NONISOTROPIC = ATTACK | {
    "curve": [CELL],
    "references": [CELL],
    "gauge_curve": [{"gauge": NUMBER, "accuracy": FRACTION}],
    "warnings": [TEXT],
}
COMMON = {
    "runner": TEXT,
    "dataset_name": TEXT,
    "wall_seconds": NUMBER,
    "environment": {"packages": Maybe(Each(Maybe(TEXT)))},
}
EVALUATIONS = {
    "standard": Maybe(EVALUATION),
    "adv": Maybe(ATTACK),
    "N_adv": Maybe(NONISOTROPIC),
    "N_adv_train_anchors": Maybe(NONISOTROPIC),
    "saved_adversarials": FLAG,
}
TRAINED = {"steps": COUNT, "final": {"train_loss": Maybe(NUMBER), "test_accuracy": FRACTION}}
CHILD = {"name": TEXT, "directory": TEXT, "error": Maybe(TEXT)}
SEPARATION = Each(AUROC)
RESPONSIBLE = {
    "share": NUMBER,
    "count": COUNT,
    "threat_from": NUMBER,
    "perturbations": Each(COUNT),
    "moves": Each(COUNT),
    "anchors": [{"class": TEXT, "train_index": COUNT, "count": COUNT}],
}

SHAPES: dict[str, dict[str, Any]] = {
    "compute_threat": {
        "num_anchors": COUNT,
        "per_label": COUNT,
        "coverage": Each(NUMBER),
        "dropped": {"count": COUNT},
        "inscribed_radius": {"lowest": NUMBER, "median": NUMBER, "highest": NUMBER},
        "halves": Maybe(AGREEMENT | {"examples": COUNT}),
    },
    "train": TRAINED,
    "test": EVALUATIONS,
    "evaluate_threat": {
        "threats": [TEXT],
        "num_examples": COUNT,
        "num_matched_pairs": COUNT,
        "separation": SEPARATION,
        **dict.fromkeys(
            ("separation_matched", "separation_directions", "separation_morphs", "separation_morphs_matched"),
            Maybe(SEPARATION),
        ),
        "separation_by_severity": Each(SEPARATION),
        "separation_by_perturbation": Each(Each({"auroc": FRACTION})),
        "rising": Each(Each(Maybe({"means_rise": FLAG, "rank_correlation": NUMBER}))),
        "responsible": RESPONSIBLE,
        "stability": Maybe(Each(AGREEMENT)),
    },
    "multi_train": {"children": [CHILD | {"result": Maybe(TRAINED)}]},
    "multi_test": {
        "children": [CHILD | {"result": Maybe(EVALUATIONS)}],
        "paired_tests": Maybe(
            [
                dict.fromkeys(("evaluation", "first", "second"), TEXT)
                | {"only_first": COUNT, "only_second": COUNT, "p": NUMBER}
            ]
        ),
    },
    "report": {"counts": Each(COUNT), "page": TEXT},
    "download_pretrained": {"models": [{"name": TEXT, "clean": Maybe(NUMBER), "robust": Maybe(NUMBER), "state": TEXT}]},
}


def misfit(result: Any, runner: str) -> str:
    """Where a result is not what a runner writes: 'final.test_accuracy: expected a number, got ...'; "" where it is."""
    problem = _misfit(result, COMMON, "")
    if problem or runner not in SHAPES:
        return problem
    return _misfit(result, SHAPES[runner], "")


def hparams_misfit(content: Any) -> str:
    """The same for what hparams.json says beside the hyperparameters themselves."""
    return _misfit(content, {"name": TEXT, "replicate": COUNT, "command": Maybe(TEXT)}, "")


def metrics_misfit(row: Any) -> str:
    """The same for a line of metrics.jsonl."""
    return _misfit(row, Each(Maybe(NUMBER)) if isinstance(row, dict) and "epoch" in row else {"epoch": NUMBER}, "")


def _misfit(value: Any, shape: Any, place: str) -> str:
    if isinstance(shape, Maybe):
        return "" if value is None else _misfit(value, shape.shape, place)
    if isinstance(shape, Is):
        return "" if shape.check(value) else f"{place or 'the whole'}: expected {shape.what}, got {_told(value)}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place or 'the whole'}: expected a list, got {_told(value)}"
        parts = [(f"{place}[{number}]", item, shape[0]) for number, item in enumerate(value)]
    elif not isinstance(value, dict):
        return f"{place or 'the whole'}: expected fields, got {_told(value)}"
    else:
        shapes = dict.fromkeys(value, shape.shape) if isinstance(shape, Each) else shape
        parts = [(f"{place}.{name}" if place else name, value.get(name), kind) for name, kind in shapes.items()]
    return next((found for part in parts if (found := _misfit(part[1], part[2], part[0]))), "")


def _told(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."
