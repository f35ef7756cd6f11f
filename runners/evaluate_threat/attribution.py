"""Attribution of the largest threats, and the dependence of the threat on the choice of anchors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy
import torch

from datasets.base import Dataset
from testing.perturbed import Perturbation
from testing.shards import Shard
from threat_specification import ProjectedDisplacement

SHARE = 0.01  # share of all safe perturbations of all images that is examined: those with the largest threats
TOP = 5  # most frequent perturbations, moves and anchors that are listed


def responsible(
    threat: ProjectedDisplacement,
    values: numpy.ndarray,
    perturbations: Sequence[Perturbation],
    data: Dataset,
    index: torch.Tensor,
) -> dict[str, Any]:
    """Attribution of the largest threats among the safe perturbations.

    Returns how large they are, and which perturbations, which moves between classes and which anchors (those with the
    largest displacement) cause them.
    """
    safe = [column for column, p in enumerate(perturbations) if p.group == "safe"]
    flat = values[:, safe].ravel()
    count = max(1, round(SHARE * len(flat)))
    largest = numpy.argsort(-flat, kind="stable")[:count]
    rows, columns = numpy.divmod(largest, len(safe))
    names, moves, anchors = Counter[str](), Counter[str](), Counter[tuple[int, int | None]]()
    classes = data.info.classes
    for column in sorted(set(columns.tolist())):
        chosen = rows[columns == column]
        perturbation = perturbations[safe[column]]
        names[perturbation.name] += len(chosen)
        at = index[torch.from_numpy(chosen)]
        labels = data.test.labels.cpu()[at]
        device = threat.labels.device
        shard = Shard(-1, data.test.pixels(at.to(data.test.labels.device)).to(device), labels.to(device), at.to(device))
        images, _ = perturbation.apply(shard)
        context = {"indices": shard.index} if threat.segmented else {}
        for label, found in zip(
            labels.tolist(), threat.explain(shard.images, shard.labels, images, top=1, **context), strict=True
        ):
            if found:
                moves[f"{classes[label]} -> {classes[found[0].label]}"] += 1
                anchors[found[0].label, found[0].index] += 1
    return {
        "share": SHARE,
        "count": count,
        "threat_from": round(float(flat[largest[-1]]), 6),
        "perturbations": dict(names.most_common(TOP)),
        "moves": dict(moves.most_common(TOP)),
        "anchors": [
            {"class": classes[label], "train_index": number, "count": times}
            for (label, number), times in anchors.most_common(TOP)
        ],
    }


def agreement(threats: dict[str, numpy.ndarray]) -> dict[str, dict[str, float]]:
    """PD over other anchors against PD: rank correlation over all perturbations of all images, and the median ratio."""
    from scipy.stats import spearmanr

    def compare(first: str, second: str) -> dict[str, float]:
        a, b = threats[first].ravel().astype(float), threats[second].ravel().astype(float)
        there = ~numpy.isnan(a) & ~numpy.isnan(b)
        positive = there & (a > 0) & (b > 0)
        return {
            "rank_correlation": round(float(spearmanr(a[there], b[there]).statistic), 6),
            "median_ratio": round(float(numpy.median(b[positive] / a[positive])), 6),
        }

    others = [name for name in threats if name.startswith("PD[")]
    found = {name: compare("PD", name) for name in others}
    if {"PD[half 1]", "PD[half 2]"} <= threats.keys():
        found["PD[half 1] against PD[half 2]"] = compare("PD[half 1]", "PD[half 2]")
    return found
