"""Coverage: the share of the safe changes that a set {threat <= threshold} holds.

Thresholds of different threats do not compare; coverages do. At equal coverage, the better threat holds the smaller
share of the unsafe changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from foundations.errors import UsageError, check_number

Array = numpy.ndarray


def threshold_at(safe: Array, coverage: float) -> float:
    """The smallest threshold that holds at least this share of the safe changes.

    safe      threats of safe changes, of any shape; NaN where there is no such change
    coverage  in [0, 1]
    """
    known = numpy.sort(safe[~numpy.isnan(safe)].astype(numpy.float64))
    # The share of n values in a set has the digits of a float64: 0.95 of 100 is 95 of them, not 96.
    needed = max(1, int(numpy.ceil(round(coverage * len(known), 9))))
    return float(known[needed - 1])


def share_held(bounds: Sequence[tuple[Array, float]]) -> float:
    """The share of changes for which all threats are at most their thresholds, of those that all threats know.

    bounds   threats of the same changes, NaN where there is no such change, and the threshold of each
    """
    known = ~numpy.isnan(sum(threats for threats, _ in bounds))
    inside = numpy.logical_and.reduce([threats <= threshold for threats, threshold in bounds])
    return float(inside[known].mean())


def threshold_at_coverage(threats: Any, coverage: float = 0.95) -> float:
    """The smallest threshold whose set {threat <= threshold} holds at least this share of safe changes.

    threats   of safe changes, of any shape: a tensor, an array or a list; NaN where there is no such change
    coverage  in [0, 1]

    Raises UsageError for another coverage, and for no threat at all.

    >>> nonisotropic.threshold_at_coverage([0.1, 0.4, 0.2, 0.3], coverage=0.75)
    0.3
    """
    import torch

    try:
        values = torch.as_tensor(threats, dtype=torch.float64).detach().cpu().numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"threats: expected a tensor, an array or a list of numbers, got a {type(threats).__name__} of something "
            "else; use torch.stack for a list of tensors"
        ) from error
    check_number("coverage", coverage, 0, 1)
    if numpy.isnan(values).all():
        raise UsageError("threats: expected at least one threat of a safe change, got none")
    return threshold_at(values, coverage)


def resampled_thresholds(safe: Array, coverages: Sequence[float], counts: Array) -> Array:
    """`threshold_at` each of L coverages in R resamples of the images, [R, L].

    safe     [n, P] threats of the safe changes of n images; NaN where there is no such change
    counts   [R, n] how often each image is in each resample
    """
    known = ~numpy.isnan(safe)
    values, image = safe[known].astype(numpy.float64), known.nonzero()[0]
    order = values.argsort()
    values, image = values[order], image[order]
    found = numpy.empty((len(counts), len(coverages)))
    for row, of in enumerate(counts):
        so_far = of[image].cumsum()
        needed = [max(1, numpy.ceil(round(coverage * so_far[-1], 9))) for coverage in coverages]
        found[row] = values[numpy.searchsorted(so_far, needed)]
    return found


def held(values: Array, threshold: float) -> float:
    """The share of changes whose threat is at most the threshold; NaN entries are no changes."""
    known = values[~numpy.isnan(values)]
    return float((known.astype(numpy.float64) <= threshold).mean()) if len(known) else float("nan")


def held_per_image(values: Array, threshold: float) -> Array:
    """That share for each image, [n], of threats [n, P]; every image has a change."""
    there = ~numpy.isnan(values)
    inside = (numpy.nan_to_num(values, nan=numpy.inf).astype(numpy.float64) <= threshold) & there
    return inside.sum(1) / there.sum(1)


def curve(safe: Array, unsafe: Array, coverages: Sequence[float]) -> tuple[list[float], list[float]]:
    """For each coverage, the threshold, and the share of unsafe changes that it holds."""
    thresholds = [threshold_at(safe, coverage) for coverage in coverages]
    return thresholds, [held(unsafe, threshold) for threshold in thresholds]
