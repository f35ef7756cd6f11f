"""The curve of coverage: what sets hold of the unsafe changes of training images, and of the safe ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from runners.evaluate_threat import charts
from runners.evaluate_threat.coverage import CURVE
from runners.evaluate_threat.desc import HEADLINE
from testing.coverage import curve

if TYPE_CHECKING:
    from runners.evaluate_threat.measurement import Measurement


def coverage(measurement: Measurement) -> Figure | None:
    """A chart of the share of unsafe changes held, against that of safe ones: lower is better.

    Of training images, on which the thresholds were found: tables are of test images, and their shares differ.
    """
    covered = measurement.coverage
    if covered is None:
        return None
    styles = charts.style(measurement.main)
    drawn = Figure(figsize=(charts.WIDTH * 0.6, 3.2), layout="constrained")
    axes = drawn.add_subplot()
    for name in measurement.main:
        if name in covered.threats:
            _, shares = curve(covered.values(name, "safe"), covered.values(name, "unsafe"), CURVE)
            axes.plot(CURVE, shares, **styles[name], markevery=5, markersize=4, linewidth=1.2)
    axes.axvline(HEADLINE, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xlabel("share of safe changes held (training images)", fontsize=8)
    axes.set_ylabel("share of unsafe changes held (training images)", fontsize=8)
    axes.set_ylim(-0.02, 1.02)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    charts.legend(drawn, styles)
    return charts.without_frame(drawn)
