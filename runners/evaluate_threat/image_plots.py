"""Figures of one image: its corruptions and unsafe variants, its unsafe directions, and the sets around it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy
import torch
from matplotlib.figure import Figure
from torch import Tensor

from runners.evaluate_threat.charts import GROUP_COLOURS, WIDTH
from runners.plots import amplified
from runners.sheets import Sheet
from testing.shards import Shard

if TYPE_CHECKING:
    from runners.evaluate_threat.measurement import Measurement

ACROSS = 8  # pictures in a row of the gallery
SHOWN_SEVERITY = 4
SHOWN_SUITES = ("C", "files")
NEAREST = 6
CELLS = 301  # grid points of the slice in each direction
LEVELS = (0.25, 0.5, 1.0)


def example(measurement: Measurement) -> tuple[int, Shard]:
    """The measured image whose move to another class has the median threat: its row, and a shard of it alone."""
    values = measurement.threats["PD"][:, measurement.other_class]
    row = int(numpy.argsort(values, kind="stable")[len(values) // 2])
    return row, shard_of(measurement, [row])


def shard_of(measurement: Measurement, rows: list[int]) -> Shard:
    """A shard of these measured images."""
    test, device = measurement.data.test, measurement.threat.labels.device
    index = measurement.index[rows]
    pixels = test.pixels(index.to(test.labels.device)).to(device)
    return Shard(-1, pixels, test.labels.cpu()[index].to(device), index.to(device))


def gallery(measurement: Measurement) -> Figure:
    """The image, the common corruptions at one severity, and the unsafe changes, with PD, l2 and l-inf of each."""
    row, shard = example(measurement)
    columns = [column for column, p in enumerate(measurement.perturbations) if _is_shown(measurement, p)]
    columns.sort(key=lambda column: list(GROUP_COLOURS).index(measurement.perturbations[column].group))
    columns = [c for c in columns if not numpy.isnan(measurement.threats["PD"][row, c])]
    sheet = Sheet(-(-(len(columns) + 1) // ACROSS), ACROSS, (WIDTH * 1.15 / ACROSS, 1.36))
    name = measurement.data.info.classes[int(shard.labels[0])]
    sheet.picture(0, shard.images[0], f"x: {name}", "", "#000000")
    for place, column in enumerate(columns, start=1):
        perturbation = measurement.perturbations[column]
        images, _ = perturbation.apply(shard)
        threats = {n: float(measurement.threats[n][row, column]) for n in ("PD", "L2", "Linf")}
        caption = f"PD {threats['PD']:.2f}\nl2 {threats['L2']:.1f}  l∞ {threats['Linf']:.2f}"
        sheet.picture(place, images[0], _title(perturbation), caption, GROUP_COLOURS[perturbation.group])
    return sheet.finished()


def _is_shown(measurement: Measurement, perturbation: Any) -> bool:
    if perturbation.group != "safe":
        return perturbation.group in GROUP_COLOURS
    levels = {p.severity for p in measurement.perturbations if p.name == perturbation.name}
    suites = {p.suite for p in measurement.perturbations if p.group == "safe"}
    level = min(levels, key=lambda severity: abs(severity - SHOWN_SEVERITY))
    return perturbation.severity == level and (perturbation.suite in SHOWN_SUITES or not suites & set(SHOWN_SUITES))


def _title(perturbation: Any) -> str:
    name = perturbation.name.replace("_", " ").removesuffix(" compression").removesuffix(" transform")
    graded = perturbation.group in ("dose", "unsafe") and perturbation.name != "other_class"
    return f"{name} {perturbation.severity:g}" if graded else name


def equal_linf(measurement: Measurement) -> Figure:
    """Changes of three images, made as long in l-inf as one another, with their PD (the paper's Figs. 1, 8 and 9).

    A change is drawn from each category; all of an image's changes are shortened to the l-inf norm of the smallest.
    """
    order = numpy.argsort(measurement.threats["PD"][:, measurement.other_class], kind="stable")
    rows = [int(order[round(share * (len(order) - 1))]) for share in (0.25, 0.5, 0.75)]
    columns = [*_strongest(measurement).values(), measurement.other_class]
    sheet = Sheet(len(rows), len(columns) + 1, (0.95, 1.2))
    shard = shard_of(measurement, rows)
    changes = torch.stack([measurement.perturbations[c].apply(shard)[0] - shard.images for c in columns])
    lengths = changes.flatten(2).abs().amax(2)
    common = lengths.where(lengths > 0, math.inf).amin(0)  # of each image
    drawn = shard.images + changes * (common / lengths.maximum(common)).view(len(columns), -1, 1, 1, 1)
    threats = torch.stack([measurement.threat.evaluate(shard.images, shard.labels, images) for images in drawn])
    for row, (image, label) in enumerate(zip(shard.images, shard.labels.tolist(), strict=True)):
        first = row * (len(columns) + 1)
        sheet.picture(first, image, measurement.data.info.classes[label], f"l∞ {float(common[row]):.2f}", "#000000")
        for place, column in enumerate(columns):
            perturbation = measurement.perturbations[column]
            told = f"PD {float(threats[place, row]):.2f}" if lengths[place, row] > 0 else "no change"
            picture = drawn[place, row].clamp(0, 1)
            sheet.picture(first + 1 + place, picture, _title(perturbation), told, GROUP_COLOURS[perturbation.group])
    return sheet.finished()


def _strongest(measurement: Measurement) -> dict[str, int]:
    """Category -> column of the safe change that is longest in l-inf, in the mean of the images."""
    lengths = measurement.threats["Linf"].mean(0)
    found: dict[str, int] = {}
    for column in measurement.columns("safe"):
        kind = measurement.perturbations[column].category
        if kind not in found or lengths[column] > lengths[found[kind]]:
            found[kind] = column
    return found


def nearest_anchors(measurement: Measurement, shard: Shard, different: bool, count: int) -> list[int]:
    """Numbers of the nearest anchors of other classes; with `different`, at most one per class."""
    anchors = measurement.threat.anchors
    assert anchors is not None
    distances = (anchors.floats() - shard.images.flatten(1)).norm(dim=1).cpu()
    labels, label = measurement.threat.labels.tolist(), int(shard.labels[0])
    found: list[int] = []
    for number in distances.argsort(stable=True).tolist():
        taken = {label, *(labels[other] for other in found)} if different else {label}
        if len(found) < count and labels[number] not in taken:
            found.append(number)
    return found


def directions(measurement: Measurement) -> Figure:
    """The nearest anchors of other classes, and the change that leads to each; grey is no change."""
    _, shard = example(measurement)
    numbers = nearest_anchors(measurement, shard, different=False, count=NEAREST)
    anchors, classes = measurement.threat.anchors, measurement.data.info.classes
    assert anchors is not None
    sheet = Sheet(2, len(numbers) + 1, (WIDTH / (NEAREST + 1), 1.17))
    sheet.picture(0, shard.images[0], f"x: {classes[int(shard.labels[0])]}", "", "#000000")
    images = anchors.floats()[numbers].to(shard.images).view(-1, *shard.images.shape[1:])
    changes = images - shard.images
    for place, number in enumerate(numbers):
        name = classes[int(measurement.threat.labels[number])]
        sheet.picture(1 + place, images[place], f"anchor: {name}", "", GROUP_COLOURS["unsafe"])
        length = float(changes[place].norm())
        change = amplified(changes[place : place + 1])[0]
        sheet.picture(len(numbers) + 2 + place, change, "", f"l2 {length:.2f}", GROUP_COLOURS["unsafe"])
    return sheet.finished()


def plane_slice(measurement: Measurement) -> Figure | None:
    """The plane through the image and its nearest anchors of two other classes; None if there is only one other.

    Shows {PD <= t}, and the l2 and l-inf balls whose slices have the same area within the window shown.
    """
    _, shard = example(measurement)
    found = nearest_anchors(measurement, shard, different=True, count=2)
    if len(found) < 2:
        return None
    first, second = found
    anchors = measurement.threat.anchors
    assert anchors is not None
    corners = anchors.floats()[[first, second]].to(shard.images) - shard.images.flatten(1)
    axis = corners[0] / corners[0].norm()
    other = corners[1] - (corners[1] @ axis) * axis
    axes_of_plane = torch.stack((axis, other / other.norm()))
    places = (corners @ axes_of_plane.T).cpu().numpy()
    reach = 1.25 * float(numpy.abs(places).max())
    along = torch.linspace(-reach, reach, CELLS, device=corners.device)
    fields = _fields(measurement, shard, axes_of_plane, along)
    grid = along.cpu().numpy()
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    labels = [measurement.data.info.classes[int(measurement.threat.labels[n])] for n in (first, second)]
    labels.append(measurement.data.info.classes[int(shard.labels[0])])
    for axes, (name, field) in zip(figure.subplots(1, 3, sharey=True), fields.items(), strict=True):
        levels = [_level_of_area(field, float((fields["PD"] <= level).mean())) for level in LEVELS]
        levels = list(LEVELS) if name == "PD" else levels
        axes.contourf(grid, grid, field, levels=[-1, *levels], colors=("#4A90C2", "#9CC5E0", "#DCEBF5"))
        axes.contour(grid, grid, field, levels=levels, colors="#0072B2", linewidths=0.8)
        axes.plot(0, 0, "o", color="black", markersize=4)
        axes.annotate(f"x: {labels[2]}", (0, 0), (4, 4), textcoords="offset points", fontsize=7)
        for place, label in zip(places, labels, strict=False):
            axes.plot(*place, "*", color=GROUP_COLOURS["unsafe"], markersize=8)
            axes.annotate(label, place, (5, 4), textcoords="offset points", fontsize=8, color=GROUP_COLOURS["unsafe"])
        bounds = ", ".join(f"{level:.2g}" for level in levels)
        axes.set_title(f"{name} ≤ {bounds}", fontsize=8)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=6)
    figure.supxlabel(
        "l2 distance in the plane; within it the l2 and l∞ balls have the areas of the PD sets", fontsize=7
    )
    return figure


def _fields(measurement: Measurement, shard: Shard, plane: Tensor, along: Tensor) -> dict[str, numpy.ndarray]:
    """Threats on a grid of the plane. <d, v_j> is linear in d, so two directions give PD everywhere."""
    examples = shard.images.expand(2, -1, -1, -1)
    context = {"indices": shard.index.expand(2)} if measurement.threat.segmented else {}
    bound = measurement.threat.bind(examples, shard.labels.expand(2), **context)
    first, second = bound.displacements(plane)
    there = first.isfinite() & second.isfinite()
    first, second = first[there], second[there]
    grid_x, grid_y = along.view(1, -1), along.view(-1, 1)
    length = (grid_x.square() + grid_y.square()).sqrt()
    fields = {
        "PD": _largest(torch.stack((first, second)), along).clamp_min(0),
        "l2": length,
        "l∞": _largest(torch.cat((plane, -plane), dim=1), along),
    }
    return {name: field.cpu().numpy() for name, field in fields.items()}


def _largest(points: Tensor, along: Tensor) -> Tensor:
    """The largest x * first + y * second over points [2, n], for all x and y in `along`: [y, x].

    A corner of their convex hull attains it. At ImageNet's size there are 300,000 points, and a few dozen corners.
    """
    corners = points[:, convex_corners(points)]
    return torch.stack([(along.view(-1, 1) * corners[0] + y * corners[1]).amax(1) for y in along])


def convex_corners(points: Tensor) -> Tensor:
    """Numbers of the points [2, n] that are corners of their convex hull; all of them where they lie on a line."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        return torch.from_numpy(ConvexHull(points.T.double().cpu().numpy()).vertices).long().to(points.device)
    except (QhullError, ValueError):  # all on one line, or fewer than three
        return torch.arange(points.shape[1], device=points.device)


def _level_of_area(field: numpy.ndarray, share: float) -> float:
    """The level below which this share of the grid lies."""
    return float(numpy.quantile(field, share))
