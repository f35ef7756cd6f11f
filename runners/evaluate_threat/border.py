"""A figure of what sets of equal coverage hold: the point of each set that is nearest to an image of another class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy
from matplotlib.figure import Figure

from runners.evaluate_threat.charts import GROUP_COLOURS, WIDTH
from runners.evaluate_threat.desc import HEADLINE
from runners.evaluate_threat.image_plots import shard_of
from runners.sheets import Sheet
from testing.coverage import threshold_at

if TYPE_CHECKING:
    from runners.evaluate_threat.measurement import Measurement

IMAGES = 5


def border(measurement: Measurement) -> Figure | None:
    """Some images, those of another class, and the nearest point to these in each set; None without coverage."""
    covered = measurement.coverage
    sets = {name: threat for name, threat in measurement.sets.items() if covered and name in covered.threats}
    if covered is None or not sets:
        return None
    rows = _spread(measurement)
    shard = shard_of(measurement, rows)
    others = measurement.perturbations[measurement.other_class].apply(shard)[0]
    classes = [measurement.data.info.classes[int(label)] for label in shard.labels]
    sheet = Sheet(len(rows), 2 + len(sets), (WIDTH / (2 + len(sets)), 1.36))
    across = 2 + len(sets)
    for row, name in enumerate(classes):
        sheet.picture(row * across, shard.images[row], f"x: {name}", "", "#000000")
        sheet.picture(row * across + 1, others[row], "another class", "", GROUP_COLOURS["unsafe"])
    for place, (name, threat) in enumerate(sets.items(), start=2):
        threshold = threshold_at(covered.values(name, "safe"), HEADLINE)
        nearest = threat.project(shard.images, shard.labels, others, threshold=threshold)
        lengths = (nearest - shard.images).flatten(1).norm(dim=1)
        for row in range(len(rows)):
            title = f"{name} <= {threshold:.2g}" if row == 0 else ""
            sheet.picture(row * across + place, nearest[row], title, f"l2 {float(lengths[row]):.1f}", "#0072B2")
    return sheet.finished()


def _spread(measurement: Measurement) -> list[int]:
    """Rows of images whose moves to another class have threats from the smallest to the largest, evenly by rank."""
    values = measurement.threats["PD"][:, measurement.other_class]
    ranks = numpy.linspace(0, len(values) - 1, IMAGES).round().astype(int)
    return [int(row) for row in dict.fromkeys(numpy.argsort(values, kind="stable")[ranks].tolist())]
