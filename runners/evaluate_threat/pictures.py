"""The pictures of a measurement, each as PNG and PDF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from runners.evaluate_threat import charts, images
from runners.evaluate_threat.measurement import Measurement
from runners.pictures import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# In the order in which the report shows them.
PICTURES: dict[str, tuple[str, Callable[[Measurement], Figure]]] = {
    "separation": ("AUROC of telling unsafe from safe changes", charts.separation),
    "distributions": ("Threats of safe, weaker and unsafe changes", charts.distributions),
    "gallery": ("An image, its corruptions (blue) and its unsafe twins (red) with their threats", images.gallery),
    "severity": ("Threat against severity", charts.severity),
    "heatmap": ("Mean threat by corruption and severity", charts.heatmap),
    "directions": ("The unsafe directions of an image: its nearest anchors of other classes", images.directions),
    "slice": ("Sets of equal area in the plane through an image and two anchors", images.plane_slice),
}


def write_pictures(folder: Path, measurement: Measurement) -> None:
    """One after the other."""
    for name, (_, draw) in PICTURES.items():
        figure = draw(measurement)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, not for each file anew
        for kind in ("png", "pdf"):
            write_figure(folder / f"{name}.{kind}", figure)
