"""Thresholds that mean something: those that hold a given share of the safe changes of training images.

They are found on training images that are no anchors; what they hold is measured on test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from datasets.base import Examples
from datasets.sampling import stratified_subset
from foundations.results import csv_table, wilson_interval
from testing.coverage import curve, held_per_image, threshold_at
from testing.perturbed import Perturbation
from testing.separation import Bootstrap

NAMED = (0.8, 0.9, 0.95, 0.99)  # coverages of the tables
CURVE = tuple(number / 100 for number in range(50, 101))

Arrays = dict[str, numpy.ndarray]


def training_rows(images: Examples, anchors: Sequence[torch.Tensor], size: int, seed: int) -> torch.Tensor:
    """A seeded, class-stratified sample of at most `size` training images that are no anchors, [n] row numbers.

    anchors  rows of the anchors in the training set, of each threat that knows them
    """
    labels = images.labels.cpu()
    free = torch.ones(len(labels), dtype=torch.bool)
    for rows in anchors:
        free[rows.cpu()] = False
    rows = free.nonzero().flatten()
    return rows[stratified_subset(labels[rows], min(size, len(rows)), seed)]


@dataclass(frozen=True)
class Coverage:
    """Threats of the changes of training images, [n, P] by name; rows of the images [n]; groups of the P changes."""

    index: numpy.ndarray
    threats: Arrays
    groups: Sequence[str]

    def values(self, name: str, group: str) -> numpy.ndarray:
        """Threats of the changes of one group."""
        return self.threats[name][:, [column for column, of in enumerate(self.groups) if of == group]]

    def describe(self, perturbations: Sequence[Perturbation], test: Arrays, bootstrap: Bootstrap) -> dict[str, Any]:
        """The field `coverage` of result.json: threat -> coverage -> threshold, and what it holds of test images."""
        # Changes from files are of test images alone: thresholds know nothing of them.
        known = [(c, p.group) for c, p in enumerate(perturbations) if p.suite != "files"]
        columns = {group: [c for c, of in known if of == group] for group in ("safe", "unsafe")}

        def on_test(name: str, threshold: float) -> dict[str, Any]:
            shares = {group: held_per_image(test[name][:, of], threshold) for group, of in columns.items()}
            means = {group: float(share.mean()) for group, share in shares.items()}
            resampled = bootstrap.counts @ shares["unsafe"] / bootstrap.counts.sum(1)
            interval = bootstrap.interval(means["unsafe"], resampled)
            low, high = interval.low, interval.high
            if means["unsafe"] in (0, 1):  # no resample differs
                low, high = wilson_interval(means["unsafe"], len(test[name]))
            return {
                "safe_held": round(means["safe"], 6),
                "unsafe_held": round(means["unsafe"], 6),
                "low": round(low, 6),
                "high": round(high, 6),
            }

        found: dict[str, Any] = {}
        for name in self.threats:
            found[name] = {}
            for level in NAMED:
                threshold = threshold_at(self.values(name, "safe"), level)
                found[name][f"{level:g}"] = {"threshold": float(f"{threshold:.6g}"), **on_test(name, threshold)}
        return {"num_training_images": len(next(iter(self.threats.values()))), "threats": found}

    def csv(self) -> str:
        """The curve of each threat, on the training images."""
        lines: list[list[Any]] = [["threat", "coverage", "threshold", "unsafe_held"]]
        for name in self.threats:
            thresholds, shares = curve(self.values(name, "safe"), self.values(name, "unsafe"), CURVE)
            lines += [
                [name, level, f"{threshold:.6g}", f"{share:.6g}"]
                for level, threshold, share in zip(CURVE, thresholds, shares, strict=True)
            ]
        return csv_table(lines)

    def arrays(self) -> Arrays:
        """The content of coverage.npz, from which other runs take thresholds (runners/inputs.py)."""
        return {"index": self.index, "group": numpy.array(self.groups), **self.threats}
