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
from testing.coverage import curve, held_per_image, resampled_thresholds, threshold_at
from testing.perturbed import Perturbation
from testing.separation import Bootstrap

NAMED = (0.8, 0.9, 0.95, 0.99)  # coverages of the tables
CURVE = tuple(number / 100 for number in range(50, 101))

Arrays = dict[str, numpy.ndarray]


def training_rows(images: Examples, anchors: Sequence[torch.Tensor], size: int, seed: int) -> torch.Tensor:
    """A seeded, class-stratified sample of at most `size` training images that are no anchors, [n] row numbers.

    anchors  rows of the anchors in the training set, of each threat that knows them; without others, n is 0
    """
    labels = images.labels.cpu()
    free = torch.ones(len(labels), dtype=torch.bool)
    for rows in anchors:
        free[rows.cpu()] = False
    rows = free.nonzero().flatten()
    if not len(rows):
        return rows
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

    def describe(
        self, perturbations: Sequence[Perturbation], test: Arrays, bootstrap: Bootstrap, seed: int
    ) -> dict[str, Any]:
        """The field `coverage` of result.json: threat -> coverage -> threshold, and what it holds of test images.

        Intervals of what is held are over draws of both: training images, which make the threshold, and test images.
        """
        # Another seed: with as many images of both, the draws would be the same ones.
        of_training = Bootstrap.over(len(self.index), len(bootstrap.counts), seed + 1).counts
        # Changes from files are of test images alone: thresholds know nothing of them.
        known = [(c, p.group) for c, p in enumerate(perturbations) if p.suite != "files"]
        columns = {group: [c for c, of in known if of == group] for group in ("safe", "unsafe")}

        def on_test(name: str, threshold: float, others: numpy.ndarray) -> dict[str, Any]:
            values = {group: test[name][:, of] for group, of in columns.items()}
            means = {group: float(held_per_image(of, threshold).mean()) for group, of in values.items()}
            resampled = [
                held_per_image(values["unsafe"], other) @ counts / counts.sum()
                for other, counts in zip(others, bootstrap.counts, strict=True)
            ]
            low, high = numpy.quantile(resampled, [0.025, 0.975]).tolist()
            if low == high in (0, 1):  # no resample differs
                low, high = wilson_interval(means["unsafe"], len(test[name]))
            return {
                "safe_held": round(means["safe"], 6),
                "unsafe_held": round(means["unsafe"], 6),
                "low": round(low, 6),
                "high": round(high, 6),
            }

        found: dict[str, Any] = {}
        for name in self.threats:
            found[name], safe = {}, self.values(name, "safe")
            for level, others in zip(NAMED, resampled_thresholds(safe, NAMED, of_training).T, strict=True):
                threshold = threshold_at(safe, level)
                held = on_test(name, threshold, others)
                found[name][f"{level:g}"] = {"threshold": float(f"{threshold:.6g}"), **held}
        return {"num_training_images": len(next(iter(self.threats.values()))), "threats": found}

    def csv(self) -> str:
        """The curve of each threat, on the training images: `unsafe_held` of result.json is of test images."""
        lines: list[list[Any]] = [["threat", "coverage", "threshold", "unsafe_held_training"]]
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
