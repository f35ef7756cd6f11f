"""Pairs of images for a study with people: a sample of the changes that were measured, and trials of attention.

`report --human_kit` shows them on a page. Half of the sample are safe changes, half are others (blends, patches,
morphs, adversarial examples); within a half every perturbation with its severity comes equally often, and no image
twice before all have come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle, islice

import numpy
import torch
from torch import Tensor

from datasets.human_pairs import NOBODY, HumanPairs
from runners.evaluate_threat.image_plots import shard_of
from runners.evaluate_threat.measurement import Measurement
from testing.shards import Shard

NUMBER = 200  # pairs, without the trials of attention
CATCH = 10  # trials of attention of either kind: another image, and the same image
MOST_BYTES = 32 * 2**20  # of the images: fewer pairs of large ones
ASKED = ("safe", "unsafe", "dose", "morph", "adversarial")  # groups of perturbations
TRIES = 20  # images looked at to find one that has a change

Columns = dict[str, list[numpy.ndarray]]  # array of HumanPairs -> its parts


def study_pairs(measurement: Measurement, partner_labels: Callable[[Tensor], Tensor], seed: int) -> HumanPairs:
    """The pairs of a measurement, as bytes, which is what people see.

    partner_labels   rows of the test set -> classes of the other images that take their place
    """
    generator = numpy.random.default_rng(seed)
    images = cycle(generator.permutation(len(measurement.index)).tolist())
    number = max(2, min(NUMBER, MOST_BYTES // (2 * math.prod(measurement.data.info.shape)) - 2 * CATCH))
    chosen: dict[int, list[int]] = {}
    for columns in _halves(measurement):
        for row, column in _sample(measurement, columns, number // 2, images, generator):
            chosen.setdefault(column, []).append(row)
    other, same = list(islice(images, CATCH)), list(islice(images, CATCH))
    plan: list[tuple[list[int], int | None, Tensor | None]] = [(chosen[each], each, None) for each in sorted(chosen)]
    plan.append((other, measurement.other_class, partner_labels(measurement.index[other])))
    plan.append((same, None, measurement.data.test.labels.cpu()[measurement.index[same]]))
    # Read together: each reading makes the host wait for a device.
    whole = shard_of(measurement, [row for rows, _, _ in plan for row in rows])
    parts: Columns = {}
    start = 0
    for rows, changed_by, catch in plan:
        part = slice(start, start + len(rows))
        shard = Shard(-1, whole.images[part], whole.labels[part], whole.index[part])
        _add(parts, measurement, shard, changed_by, catch)
        start = part.stop
    arrays = {name: numpy.concatenate(values) for name, values in parts.items()}
    info = measurement.data.info
    classes = numpy.array([info.title(label) for label in range(len(info.classes))])
    return HumanPairs(**arrays, people=None, certain=numpy.ones(len(arrays["label"]), bool), classes=classes)


def _halves(measurement: Measurement) -> tuple[list[int], list[int]]:
    """Columns of safe changes and of the others that people are asked about."""
    groups = [p.group for p in measurement.perturbations]
    asked = [c for c, group in enumerate(groups) if group in ASKED and c != measurement.other_class]
    return [c for c in asked if groups[c] == "safe"], [c for c in asked if groups[c] != "safe"]


def _sample(
    measurement: Measurement, columns: Sequence[int], number: int, images: cycle[int], generator: numpy.random.Generator
) -> list[tuple[int, int]]:
    """Rows and columns of a number of changes: the columns in turn, in an order drawn anew each time round."""
    values = next(iter(measurement.threats.values()))
    found: dict[tuple[int, int], None] = {}  # in their order; nobody is asked about a pair twice
    while len(found) < number:
        before = len(found)
        for column in generator.permutation(columns).tolist()[: number - len(found)]:
            tried = islice(images, TRIES)
            there = (row for row in tried if not numpy.isnan(values[row, column]) and (row, column) not in found)
            if (row := next(there, None)) is not None:
                found[row, column] = None
        if len(found) == before:
            break
    return list(found)


def _add(parts: Columns, measurement: Measurement, shard: Shard, column: int | None, catch: Tensor | None) -> None:
    """Add images changed as one column says, or unchanged; `catch` is what everybody must see in a trial, else None."""
    changed, meant, group, change = shard.images, None, "catch", "none"
    if column is not None:
        perturbation = measurement.perturbations[column]
        changed, meant = perturbation.apply(shard)
        change = f"{perturbation.name} {perturbation.severity:g}"
        group = perturbation.group if catch is None else group
    kept = numpy.ones(len(shard.index), bool) if meant is None else meant.cpu().numpy()
    added = {
        "clean": _bytes(shard.images),
        "changed": _bytes(changed),
        "label": shard.labels.cpu().numpy(),
        "group": numpy.full(len(shard.index), group),
        "change": numpy.full(len(shard.index), change),
        "catch": numpy.full(len(shard.index), NOBODY) if catch is None else catch.numpy(),
    }
    for name, values in added.items():
        parts.setdefault(name, []).append(values[kept])


def _bytes(images: Tensor) -> numpy.ndarray:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
