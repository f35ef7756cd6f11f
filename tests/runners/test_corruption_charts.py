"""Pictures of corruptions by what they draw, against the numbers of the measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file

from datasets.registry import load_dataset
from datasets.sampling import stratified_subset
from runners import corruptions
from runners.evaluate_threat import corruption_charts, image_plots, perturbations
from runners.evaluate_threat.measurement import Measurement
from testing.perturbed import PerturbationEvaluation
from testing.shards import Shard
from threat_specification import L2, AnchorSet, Linf, ProjectedDisplacement
from threat_specification.perturbations.registry import CATEGORIES, OTHER, SAFE, SUITES, category

INDEX = torch.arange(5, 17)


def bright(images: torch.Tensor) -> torch.Tensor:
    """Masks that differ from image to image."""
    return images > images.flatten(1).mean(1).view(-1, 1, 1, 1)


def masks_in_a_file(folder: Path) -> str:
    """The same masks for the whole test set, by row."""
    test = load_dataset("digits").test
    save_file({"masks": bright(test.pixels(slice(None)))}, folder / "masks.safetensors")
    return f"file:{folder / 'masks.safetensors'}"


@pytest.fixture(scope="module")
def measurement() -> Measurement:
    return measured(bright)


def measured(mask_source: Any) -> Measurement:
    """Twelve digits, all corruptions at two severities, and the object and the background alone."""
    data = load_dataset("digits")
    rows = stratified_subset(data.train.labels, 60, 0)
    anchors = AnchorSet(data.train.pixels(rows), data.train.labels[rows], rows)
    plain = ProjectedDisplacement(anchors=anchors)
    segmented = ProjectedDisplacement(anchors=anchors, segmented=True, mask_source=mask_source)
    find = perturbations.Partners(data.test, 0)
    made = corruptions.safe(list(SUITES), (1, 4), 0) + perturbations.unsafe(find, 0)
    assert segmented.mask_source is not None
    made += perturbations.regions(made, segmented.mask_source)
    index = INDEX
    measures = {measure.name: measure for measure in (plain, segmented, L2(), Linf())}
    found = PerturbationEvaluation(made, measures)(Shard(0, data.test.pixels(index), data.test.labels[index], index))
    return Measurement(data, plain, index, made, {name: rows.numpy() for name, rows in found.items()}, {})


def test_every_corruption_has_one_category() -> None:
    assert sorted(name for names in CATEGORIES.values() for name in names) == sorted(SAFE)
    assert category("spatter") == "occlusion" and category("far_focus") == OTHER
    assert len(corruption_charts.COLOURS) == len(set(corruption_charts.COLOURS.values())) == len(CATEGORIES) + 1


def test_quadrants_has_a_mark_at_the_means_of_each_corruption(measurement: Measurement) -> None:
    (axes,) = corruption_charts.quadrants(measurement).axes
    marks = numpy.concatenate([mark.get_offsets() for mark in axes.collections])
    columns = [*measurement.columns("safe"), measurement.other_class]
    means = numpy.stack([measurement.threats[name][:, columns].mean(0) for name in ("Linf", "PD")], axis=1)
    assert len(marks) == len(means)
    assert numpy.allclose(numpy.sort(marks, axis=0), numpy.sort(means, axis=0))
    assert numpy.allclose(marks[-1], means[-1])
    lines = [line.get_xydata()[0] for line in axes.lines]
    assert [lines[0][1], lines[1][0]] == [1.0, 0.5]


@pytest.mark.parametrize("relative", [True, False])
def test_heatmaps_hold_the_means_by_category(measurement: Measurement, relative: bool) -> None:
    figure = (corruption_charts.heatmap if relative else corruption_charts.heatmap_raw)(measurement)
    axes = figure.axes[0]
    names = [label.get_text().replace(" ", "_") for label in axes.get_yticklabels()]
    assert names == [name for names in CATEGORIES.values() for name in sorted(names, key=list(SAFE).index)]
    cells = numpy.asarray(axes.images[0].get_array())
    pd = measurement.threats["PD"]
    unit = numpy.median(pd[:, measurement.other_class]) if relative else 1
    for column in measurement.columns("safe"):
        p = measurement.perturbations[column]
        assert cells[names.index(p.name), (1, 4).index(p.severity)] == pytest.approx(pd[:, column].mean() / unit)


@pytest.mark.parametrize("source", ["computed", "file"])
def test_the_object_and_the_background_alone(source: str, measurement: Measurement, tmp_path: Path) -> None:
    """The two are the parts of the most severe change; the segmented threat sees the first alone."""
    measurement = measurement if source == "computed" else measured(masks_in_a_file(tmp_path))
    names = {p.name: column for column, p in enumerate(measurement.perturbations) if p.severity in (1, 4)}
    for name in ("gaussian_noise", "other_class"):
        whole, inside, outside = (names[f"{name}{part}"] for part in ("", ", foreground alone", ", background alone"))
        lengths = measurement.threats["L2"].astype(float) ** 2
        assert numpy.allclose(lengths[:, inside] + lengths[:, outside], lengths[:, whole], rtol=1e-4)
        assert lengths[:, outside].min() > 0 and lengths[:, inside].min() > 0
        segmented = measurement.threats["PD-S"]
        assert (segmented[:, outside] == 0).all() and measurement.threats["PD"][:, outside].max() > 0
        assert numpy.allclose(segmented[:, inside], segmented[:, whole], rtol=1e-4)
    figure = corruption_charts.regions(measurement)
    assert figure is not None
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == [*CATEGORIES, "image of another class"]
    dots = [line.get_xydata()[0] for line in figure.axes[1].lines if len(line.get_xydata()) == 1]
    last = {at: value for value, at in dots}[len(shown) - 1 + 0.14]
    assert last == pytest.approx(numpy.median(measurement.threats["PD-S"][:, names["other_class, foreground alone"]]))


def test_changes_are_made_equally_long(measurement: Measurement) -> None:
    """The pictures differ from the image by the same l-inf norm, and say the PD of what is drawn."""
    figure = image_plots.equal_linf(measurement)
    columns = 2 + len(CATEGORIES)
    found = pictures(figure)
    assert len(found) == 3 * columns
    for row in range(3):
        (image, _, said_of_image), *others = found[row * columns : (row + 1) * columns]
        said = float(said_of_image.split()[1])
        others = [picture for picture in others if picture[2] != "no change"]
        told = [float(caption.split()[1]) for _, _, caption in others]
        assert len(set(told)) > 3
        for (drawn, title, _), threat in zip(others, told, strict=True):
            assert numpy.abs(drawn - image).max() == pytest.approx(said, abs=0.006)
            (at,) = (i for i in INDEX.tolist() if numpy.allclose(measurement.data.test.pixels(i)[0], image, atol=1e-6))
            x, y = measurement.data.test.pixels(torch.tensor([at])), measurement.data.test.labels[at : at + 1]
            z = torch.from_numpy(drawn).view_as(x)
            if title == "other class":  # towards the image of another class of this very image
                partner, label = perturbations.Partners(measurement.data.test, 0)(Shard(0, x, y, torch.tensor([at])))
                share = said / float((partner - x).abs().max())
                assert torch.allclose(z, x + share * (partner - x), atol=0.02) and int(label) != int(y)
            assert float(measurement.threat.evaluate(x, y, z)) == pytest.approx(threat, abs=0.006)


def pictures(figure: Any) -> list[tuple[numpy.ndarray, str, str]]:
    """Image, title and caption of each picture of a sheet."""
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    images = [numpy.asarray(image.get_array(), dtype=numpy.float32) for image in axes.images]
    return list(zip(images, texts[::2], texts[1::2], strict=True))


def test_the_gallery_says_what_was_measured(measurement: Measurement) -> None:
    (image, title, caption), *others = pictures(image_plots.gallery(measurement))
    (at,) = (i for i in INDEX.tolist() if numpy.allclose(measurement.data.test.pixels(i)[0], image, atol=1e-6))
    row = INDEX.tolist().index(at)
    assert title == f"x: {int(measurement.data.test.labels[at])}" and caption == ""
    columns = {p.name: c for c, p in enumerate(measurement.perturbations) if p.group == "unsafe" or p.severity == 4}
    for name in ("gaussian_noise", "contrast", "other_class"):
        ((drawn, _, said),) = (found for found in others if found[1] == name.replace("_", " "))
        assert said.startswith(f"PD {measurement.threats['PD'][row, columns[name]]:.2f}\nl2 ")
        assert f"l∞ {numpy.abs(drawn - image).max():.2f}" in said


def test_severity_has_a_panel_of_lines_for_each_corruption(measurement: Measurement) -> None:
    """Heights of the marks, in units of the height of the dotted line, which is at 0.5."""
    (axes,) = corruption_charts.severity(measurement).axes
    frames, halves = (collection.get_segments() for collection in axes.collections[:2])
    titles = [text.get_text().replace("\n", " ").replace(" ", "_") for text in axes.texts if text.get_fontsize() == 6.5]
    assert titles == [name for names in CATEGORIES.values() for name in sorted(names, key=list(SAFE).index)]
    corners = [frame for frame in frames if len(frame) == 3]
    assert len(corners) == len(halves) == len(titles)
    lines = [line.get_xydata() for line in axes.lines[: len(measurement.main)]]
    gaps = numpy.flatnonzero(numpy.isnan(lines[0][:, 0])) + 1
    runs = numpy.split(lines[measurement.main.index("PD")], gaps)[:-1]
    all_runs = numpy.split(numpy.stack(lines)[:, :, 1], gaps, axis=1)[:-1]
    highest = max(
        (zero - numpy.nanmin(of)) / (zero - top) for ((_, top), (_, zero), _), of in zip(corners, all_runs, strict=True)
    )
    assert highest == pytest.approx(1 / 1.05, abs=1e-5)  # the largest mean fills a panel
    unit = numpy.median(measurement.threats["PD"][:, measurement.other_class])
    for title, (_, (_, zero), _), half, run in zip(titles, corners, halves, runs, strict=True):
        columns = [c for c, p in enumerate(measurement.perturbations) if p.name == title and p.group == "safe"]
        heights = 0.5 * (zero - run[:-1, 1]) / (zero - half[0, 1])
        assert heights == pytest.approx(measurement.threats["PD"][:, columns].mean(0) / unit, abs=1e-5)


@pytest.mark.parametrize("shape", ["cloud", "line", "point"])
def test_corners_of_the_hull_attain_what_all_points_attain(shape: str) -> None:
    points = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    points = {"cloud": points, "line": points[:1] * torch.tensor([[1.0], [2.0]]), "point": points[:, :1]}[shape]
    corners = image_plots.convex_corners(points)
    angles = torch.linspace(0, 6.28, 1000)
    plane = torch.stack((angles.cos(), angles.sin()))
    assert torch.allclose((plane.T @ points).amax(1), (plane.T @ points[:, corners]).amax(1), atol=1e-5)
    assert shape != "cloud" or len(corners) < 50
