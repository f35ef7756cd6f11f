"""Accuracy under corruptions: the answers for every example under each of them, and the figures made of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy
import torch
from torch import Tensor, nn

from testing.perturbed import Perturbation
from testing.shards import Shard
from threat_specification.attacks.base import NO_CLASS, predicted

Accuracies = Mapping[str, Mapping[str, float]]  # corruption -> severity -> accuracy


@dataclass
class CorruptionEvaluation:
    """An evaluation of the prediction under every corruption; without a finite answer the model is wrong.

    corruptions   one for each column of corruption_correct, all severities of one after the other
    """

    model: nn.Module
    corruptions: Sequence[Perturbation]

    pictures = ()

    @property
    def columns(self) -> dict[str, str | tuple[str, int]]:
        """Right or wrong under each corruption, and under how many of them there was no answer."""
        return {"corruption_correct": ("bool", len(self.corruptions)), "corruption_no_answer": "int64"}

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        with torch.no_grad():
            answers = [predicted(self.model(corruption.apply(shard)[0])) for corruption in self.corruptions]
        found = torch.stack(answers, dim=1)
        return {
            "corruption_correct": found == shard.labels[:, None],
            "corruption_no_answer": (found == NO_CLASS).sum(1),
        }


def by_corruption(corruptions: Sequence[Perturbation], correct: numpy.ndarray) -> dict[str, dict[str, float]]:
    """Corruption -> severity -> accuracy, in the order of the columns of `correct` [n, number of corruptions]."""
    found: dict[str, dict[str, float]] = {}
    for corruption, accuracy in zip(corruptions, correct.mean(0).tolist(), strict=True):
        found.setdefault(corruption.name, {})[f"{corruption.severity:g}"] = accuracy
    return found


def mean_accuracy(accuracies: Accuracies) -> float:
    """The mean over corruptions of the mean over severities: each corruption counts once."""
    return fmean(fmean(levels.values()) for levels in accuracies.values())


def corruption_errors(accuracies: Accuracies, baseline: Accuracies) -> dict[str, float]:
    """CE of each corruption: the sum of errors over severities, over that of a baseline that makes some.

    mCE is the mean over the 15 corruptions of Hendrycks and Dietterich (2019).
    """
    return {name: _errors(levels) / _errors(baseline[name]) for name, levels in accuracies.items()}


def without_errors(accuracies: Accuracies) -> list[str]:
    """The corruptions under which a model is never wrong: no baseline for a CE."""
    return [name for name, levels in accuracies.items() if _errors(levels) <= 0]


def _errors(levels: Mapping[str, float]) -> float:
    return sum(1 - accuracy for accuracy in levels.values())
