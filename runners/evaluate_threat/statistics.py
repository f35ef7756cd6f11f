"""Statistics of a measurement for result.json: table, separations, monotonicity; and the same as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from foundations.results import csv_table
from testing.perturbed import Perturbation
from testing.separation import Bootstrap, Placements, matched_pairs, rising

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 20
HOMOGENEOUS = (
    "PD",
    "PD-T",
    "PD-W",
    "PD-S",
    "L2",
    "Linf",
)  # their threat of d / ||d|| is the threat of d, divided by ||d||

Arrays = dict[str, numpy.ndarray]


def table(perturbations: Sequence[Perturbation], threats: Arrays) -> list[dict[str, Any]]:
    """One row for each column of the measurement."""
    edges = {name: histogram_edges(values) for name, values in threats.items()}
    return [
        {
            "perturbation": p.name,
            "severity": p.severity,
            "group": p.group,
            "suite": p.suite,
            "category": p.category,
            "num_examples": int((~numpy.isnan(next(iter(threats.values()))[:, column])).sum()),
            "threats": {name: _summary(values[:, column], edges[name]) for name, values in threats.items()},
        }
        for column, p in enumerate(perturbations)
    ]


def histogram_edges(values: numpy.ndarray) -> numpy.ndarray:
    """Edges of bins of equal width up to the 99.5th percentile, shared by all perturbations.

    The last bin also takes all larger values.
    """
    return numpy.linspace(0, max(float(numpy.nanquantile(values, 0.995)), 1e-6), BINS + 1)


def _summary(values: numpy.ndarray, edges: numpy.ndarray) -> dict[str, Any]:
    values = values[~numpy.isnan(values)].astype(numpy.float64)
    if not len(values):
        return {"mean": None, "quantiles": None, "histogram": None}
    return {
        "mean": _short(values.mean()),
        "quantiles": {str(q): _short(v) for q, v in zip(QUANTILES, numpy.quantile(values, QUANTILES), strict=True)},
        "histogram": numpy.histogram(values.clip(max=edges[-1]), edges)[0].tolist(),
    }


class Separations:
    """Separation of the unsafe columns from the safe ones by each threat, in several comparisons."""

    def __init__(self, perturbations: Sequence[Perturbation], threats: Arrays, bootstrap: Bootstrap) -> None:
        self.perturbations, self.threats, self.bootstrap = perturbations, threats, bootstrap
        self.safe, self.unsafe, self.morphs = (self._columns(group) for group in ("safe", "unsafe", "morph"))

    def _columns(self, group: str) -> list[int]:
        return [column for column, p in enumerate(self.perturbations) if p.group == group]

    def placements(self, values: numpy.ndarray, unsafe: Sequence[int], **only: Any) -> Placements:
        """Placements of the safe columns with the attribute values `only`, averaged over severities, then types."""
        types: dict[str, list[Placements]] = {}
        for column in self.safe:
            p = self.perturbations[column]
            if all(getattr(p, name) == wanted for name, wanted in only.items()):
                types.setdefault(p.name, []).append(Placements.of(values[:, column], values[:, unsafe]))
        return Placements.mean([Placements.mean(parts) for parts in types.values()])

    def of(self, unsafe: Sequence[int], threats: Arrays | None = None, **only: Any) -> dict[str, dict[str, float]]:
        """AUROC with its interval, for each threat."""
        return {
            name: self.placements(values, unsafe, **only).interval(self.bootstrap).describe()
            for name, values in (self.threats if threats is None else threats).items()
        }

    def over(self, attribute: str) -> dict[str, dict[str, dict[str, float]]]:
        """AUROCs as in `of`, for every value of an attribute of the safe perturbations."""
        values = dict.fromkeys(getattr(self.perturbations[column], attribute) for column in self.safe)
        return {
            f"{value:g}" if isinstance(value, float | int) else value: self.of(self.unsafe, **{attribute: value})
            for value in values
        }

    def matched(self, unsafe: Sequence[int]) -> tuple[dict[str, dict[str, float]], int]:
        """AUROC for each threat over pairs of perturbations of one image with similar l2 norms, and their number.

        The AUROCs are empty if there are no pairs.
        """
        pairs, number = matched_pairs(self.threats, self.threats["L2"], self.safe, unsafe, self.bootstrap)
        return {name: interval.describe() for name, interval in pairs.items()} if number else {}, number

    def directions(self) -> Arrays:
        """Threats of d / ||d||_2, for the homogeneous threats; 0 where nothing changed."""
        lengths = self.threats["L2"].astype(numpy.float64)
        return {
            name: numpy.where(
                lengths > 0, values / numpy.maximum(lengths, 1e-12), numpy.where(lengths == 0, 0, lengths)
            )
            for name, values in self.threats.items()
            if name.split("[")[0] in HOMOGENEOUS and name != "L2"
        }

    def describe(self) -> dict[str, Any]:
        """The fields of result.json."""
        pairs, number = self.matched(self.unsafe)
        found = {
            "separation": self.of(self.unsafe),
            "separation_matched": pairs,
            "num_matched_pairs": number,
            "separation_directions": self.of(self.unsafe, self.directions()),
            "separation_by_severity": self.over("severity"),
            "separation_by_suite": self.over("suite"),
            "separation_by_category": self.over("category"),
            "separation_by_perturbation": self.over("name"),
        }
        if self.morphs and not numpy.isnan(self.threats["L2"][:, self.morphs]).all():
            found["separation_morphs"] = self.of(self.morphs)
            found["separation_morphs_matched"], found["num_matched_morph_pairs"] = self.matched(self.morphs)
        return found

    def rising(self) -> dict[str, dict[str, dict[str, float | bool]]]:
        """Perturbation -> threat -> whether the threat rises with severity, for perturbations of several severities."""
        columns: dict[str, list[int]] = {}
        for column in self.safe:
            columns.setdefault(self.perturbations[column].name, []).append(column)
        return {
            name: {
                threat: rising([self.perturbations[column].severity for column in of], values[:, of])
                for threat, values in self.threats.items()
            }
            for name, of in columns.items()
            if len(of) > 1
        }


def table_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The table as CSV: one line for each row and threat."""
    quantiles = [f"q{100 * q:g}" for q in QUANTILES]
    keys = ["perturbation", "severity", "group", "suite", "category"]
    lines: list[list[Any]] = [[*keys, "examples", "threat", "mean", *quantiles]]
    for row in rows:
        for name, summary in row["threats"].items():
            metrics = ["", *[""] * len(QUANTILES)]
            if summary["mean"] is not None:
                metrics = [summary["mean"], *summary["quantiles"].values()]
            first = [row[key] for key in (*keys, "num_examples")]
            lines.append([*first, name, *metrics])
    return csv_table(lines)


def separation_csv(result: dict[str, Any]) -> str:
    """The separations as CSV: one line for each comparison and threat."""
    lines: list[list[Any]] = [["comparison", "threat", "auroc", "low", "high"]]
    for key, found in result.items():
        if not key.startswith("separation"):
            continue
        nested = found if "_by_" in key else {"": found}
        for part, threats in nested.items():
            name = f"{key}: {part}" if part else key
            lines += [[name, threat, *metrics.values()] for threat, metrics in threats.items()]
    return csv_table(lines)


def _short(value: float) -> float:
    return float(f"{value:.6g}")
