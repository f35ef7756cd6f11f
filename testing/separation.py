"""Statistics of how well a threat separates unsafe from safe perturbations.

The AUROC is the probability that an unsafe perturbation of one image has a larger threat than a safe one of another
(or the same), ties counting half. It is the mean of placements (DeLong, DeLong, Clarke-Pearson 1988). The placement of
a safe value is the share of unsafe values above it; that of an unsafe value is the share of safe values below it.
Averages over types of perturbations are averages of placements. Intervals come from a bootstrap over images, each with
all its perturbations: the AUROC of a resample is, to first order, the mean of its images' safe placements + the mean of
their unsafe placements - AUROC. So n images cost O(n log n), not O(n^2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from foundations.results import wilson_interval

Array = numpy.ndarray

MATCHED = 0.1  # relative difference of l2 norms up to which two perturbations of an image are a pair


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    auroc: float
    low: float
    high: float

    def describe(self) -> dict[str, float]:
        """The fields for result.json, rounded to 6 decimal places."""
        return {name: round(float(value), 6) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Bootstrap:
    """The bootstrap over images: counts [R, n], how often each of n images is drawn in each of R resamples."""

    counts: Array

    @classmethod
    def over(cls, images: int, resamples: int, seed: int) -> Bootstrap:
        """Draw `resamples` bootstrap resamples, each of as many images as there are, with replacement."""
        generator = numpy.random.default_rng(seed)
        counts = generator.multinomial(images, numpy.full(images, 1 / images), size=resamples)
        return cls(counts.astype(numpy.float64))

    def interval(self, estimate: float, resampled: Array, images: int | None = None) -> Interval:
        """The 2.5th and 97.5th percentiles of the resampled estimates, on the logit scale.

        Resamples are first-order approximations, which may leave [0, 1]: they are taken as changes of the logit, to the
        same order. An estimate of 0 or 1 has no such scale, and no resample differs from it: its interval is that of a
        share of so many images (Wilson 1927).

        images   that the estimate is of (default: all)
        """
        if estimate in (0, 1):
            return Interval(estimate, *wilson_interval(estimate, self.counts.shape[1] if images is None else images))
        usable = resampled[~numpy.isnan(resampled)]
        if not len(usable) or not 0 < estimate < 1:
            return Interval(estimate, estimate, estimate)
        changes = numpy.quantile(usable - estimate, [0.025, 0.975]) / (estimate * (1 - estimate))
        low, high = 1 / (1 + (1 - estimate) / estimate * numpy.exp(-changes.clip(-500, 500)))
        return Interval(estimate, float(low), float(high))


@dataclass(frozen=True)
class Placements:
    """Placements of one safe column, or an average of several, against U unsafe columns.

    safe, unsafe   [n, U] in [0, 1]; unsafe is NaN where an image has no such perturbation
    """

    safe: Array
    unsafe: Array

    @classmethod
    def of(cls, safe: Array, unsafe: Array) -> Placements:
        """Compute placements from threats of a safe perturbation [n] and of U unsafe ones [n, U], NaN if missing."""
        ordered_safe = numpy.sort(safe)
        above, below = numpy.full(unsafe.shape, numpy.nan), numpy.full(unsafe.shape, numpy.nan)
        for column, values in enumerate(unsafe.T):
            there = ~numpy.isnan(values)
            if there.any():
                above[:, column] = 1 - _rank(numpy.sort(values[there]), safe)
                below[there, column] = _rank(ordered_safe, values[there])
        return cls(above, below)

    @classmethod
    def mean(cls, parts: Sequence[Placements]) -> Placements:
        """The mean of several placements, all with equal weight."""
        return cls(*(numpy.mean([getattr(part, name) for part in parts], axis=0) for name in ("safe", "unsafe")))

    @property
    def auroc(self) -> float:
        """The AUROC, a mean over the unsafe columns."""
        return float(numpy.nanmean(self.safe))

    def interval(self, bootstrap: Bootstrap) -> Interval:
        """The AUROC with its confidence interval from a bootstrap over images."""
        return bootstrap.interval(self.auroc, self.resampled(bootstrap))

    def resampled(self, bootstrap: Bootstrap) -> Array:
        """The AUROC of every resample of the images, to first order, [R]."""
        counts, there = bootstrap.counts, ~numpy.isnan(self.unsafe)
        columns = there.any(0)
        safe, unsafe, there = self.safe[:, columns], numpy.nan_to_num(self.unsafe[:, columns]), there[:, columns]
        drawn = counts @ there
        with numpy.errstate(invalid="ignore"):
            resampled = counts @ safe / counts.sum(1, keepdims=True) + counts @ unsafe / drawn - safe.mean(0)
        return resampled.mean(1)


def _rank(ordered: Array, values: Array) -> Array:
    """The share of `ordered` that lies below each value, ties counting half."""
    left, right = (numpy.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (left + right) / 2 / len(ordered)


def matched_pairs(
    threats: dict[str, Array], lengths: Array, safe: Sequence[int], unsafe: Sequence[int], bootstrap: Bootstrap
) -> tuple[dict[str, Interval], int]:
    """The share of matched pairs in which the unsafe perturbation has the larger threat, and the number of pairs.

    A matched pair is a safe and an unsafe perturbation of the same image whose l2 norms differ by at most 10 %. Ties
    count half.

    threats        name -> [n, P]
    lengths        [n, P] the l2 norms of the perturbations
    safe, unsafe   column numbers in both arrays
    """
    first, second = lengths[:, safe, None], lengths[:, None, unsafe]
    larger = numpy.maximum(first, second)
    pairs = (numpy.abs(first - second) <= MATCHED * larger) & (larger > 0)
    per_image = pairs.sum((1, 2))
    found = {}
    for name, values in threats.items():
        below, above = values[:, safe, None], values[:, None, unsafe]
        won = (((above > below) + 0.5 * (above == below)) * pairs).sum((1, 2))
        with numpy.errstate(invalid="ignore"):
            resampled = bootstrap.counts @ won / (bootstrap.counts @ per_image)
        estimate = float(won.sum() / per_image.sum()) if per_image.any() else float("nan")
        found[name] = bootstrap.interval(estimate, resampled, int((per_image > 0).sum()))
    return found, int(per_image.sum())


def rising(severities: Sequence[float], values: Array) -> dict[str, float | bool]:
    """Measures of whether a threat [n, S] increases with severity.

    means_rise         True if the mean over the images never decreases from one column to the next
    rank_correlation   correlation of the ranks within an image, averaged over the images
    """
    from scipy.stats import rankdata

    means = numpy.nanmean(values, axis=0)
    order = rankdata(severities)
    ranks = rankdata(values, axis=1)
    centred, along = ranks - ranks.mean(1, keepdims=True), order - order.mean()
    spread = numpy.sqrt((centred**2).sum(1) * (along**2).sum())
    correlation = numpy.where(spread > 0, centred @ along / numpy.maximum(spread, 1e-12), 0.0)
    return {
        "means_rise": bool((numpy.diff(means) >= 0).all()),
        "rank_correlation": round(float(correlation.mean()), 6),
    }
