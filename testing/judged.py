"""AUROC of a measure against a yes-or-no answer about each pair of images, with a bootstrap over images.

Pairs of one image are drawn together: n pairs of few images are no n independent answers.
"""

from __future__ import annotations

import numpy

from testing.separation import Bootstrap, Interval

Array = numpy.ndarray

TIED = 1e-6  # relative difference up to which two values are equal: changes of one l-inf size differ by rounding


def clustered_auroc(
    values: Array, answers: Array, images: Array, bootstrap: Bootstrap, groups: Array | None = None
) -> Interval | None:
    """The probability that a pair answered yes has a larger value than one answered no, ties counting half.

    None if there are no such two pairs. Each resample is counted exactly, in O(n) after one sort.

    values    [n] of the measure
    answers   [n] bool
    images    [n] the number of each pair's image, below the number of images of the bootstrap
    groups    [n] if given, only pairs of one group are compared with each other
    """
    groups = numpy.zeros(len(values)) if groups is None else groups
    counts = numpy.concatenate((numpy.ones((1, bootstrap.counts.shape[1])), bootstrap.counts))
    won, compared = numpy.zeros(len(counts)), numpy.zeros(len(counts))
    for group in numpy.unique(groups):
        rows = groups == group
        found = _won(values[rows], answers[rows], counts[:, images[rows]])
        won, compared = won + found[0], compared + found[1]
    if not compared[0]:
        return None
    with numpy.errstate(invalid="ignore"):  # a resample without a yes or without a no has no AUROC
        aurocs = won / compared
    fewest = min(len(numpy.unique(images[answers == answer])) for answer in (True, False))
    return bootstrap.interval(float(aurocs[0]), aurocs[1:], fewest)


def _won(values: Array, answers: Array, counts: Array) -> tuple[Array, Array]:
    """The comparisons of a yes with a no that the yes wins, and all of them, counted in each resample [R].

    counts   [R, n] how often each pair is drawn
    """
    order = numpy.argsort(values, kind="stable")
    values, answers, counts = values[order].astype(numpy.float64), answers[order], counts[:, order]
    starts = numpy.flatnonzero(numpy.append(True, numpy.diff(values) > TIED * numpy.abs(values[1:])))
    yes, no = (numpy.add.reduceat(counts * chosen, starts, axis=1) for chosen in (answers, ~answers))
    below = numpy.cumsum(no, axis=1) - no / 2
    return (yes * below).sum(1), yes.sum(1) * no.sum(1)
