"""Paired tests of two evaluations on the examples that both have, from their rows in examples.npz."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy


@dataclass(frozen=True)
class Paired:
    """Examples on which one of two models alone is right, and McNemar's exact p-value for as many or more on one side.

    Of several answers for an example, under corruptions, one model has more right than the other: the sign test.
    """

    only_first: int
    only_second: int
    p: float


def paired(first: Mapping[str, numpy.ndarray], second: Mapping[str, numpy.ndarray], column: str) -> Paired | None:
    """The test of two evaluations, by a column of right and wrong; None without it or without a common example."""
    if column not in first or column not in second:
        return None
    _, mine, its = numpy.intersect1d(first["index"], second["index"], return_indices=True)
    if not len(mine):
        return None
    from scipy.stats import binomtest

    a, b = _right(first[column][mine]), _right(second[column][its])
    only_first, only_second = int((a > b).sum()), int((b > a).sum())
    differ = only_first + only_second
    return Paired(only_first, only_second, float(binomtest(only_first, differ).pvalue) if differ else 1.0)


def _right(answers: numpy.ndarray) -> numpy.ndarray:
    """[n] number of right answers for each example, of one or of several: bool [n] or [n, answers]."""
    return answers.reshape(len(answers), -1).sum(1)
