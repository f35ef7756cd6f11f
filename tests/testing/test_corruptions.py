"""Answers under corruptions, and the figures made of them."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import Tensor, nn

from runners.corruptions import safe
from testing.corruptions import (
    CorruptionEvaluation,
    by_corruption,
    corruption_errors,
    mean_accuracy,
    without_errors,
)
from testing.perturbed import Perturbation
from testing.shards import Shard


class Brightness(nn.Module):
    """Class 1 if an image is bright on average; no answer for one that is nearly white."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        logits = torch.stack((0.5 - mean, mean - 0.5), dim=1)
        return torch.where(mean[:, None] > 0.9, torch.nan, logits)


def shifted(amount: float, name: str = "lighter", severity: int = 1) -> Perturbation:
    return Perturbation(name, severity, "safe", "C", "", lambda shard: (shard.images + amount, None))


def test_each_column_is_a_corruption_and_an_answer_of_nan_is_wrong() -> None:
    images = torch.tensor([0.1, 0.3, 0.45, 0.7]).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    shard = Shard(0, images, torch.tensor([0, 0, 0, 1]), torch.arange(4))
    changes = [shifted(0.0), shifted(0.1, severity=2), shifted(0.25, "paler")]
    evaluation = CorruptionEvaluation(Brightness(), changes)
    found = evaluation(shard)
    expected = [[True, True, True], [True, True, False], [True, False, False], [True, True, False]]
    assert found["corruption_correct"].tolist() == expected
    assert found["corruption_no_answer"].tolist() == [0, 0, 0, 1]
    assert evaluation.columns == {"corruption_correct": ("bool", 3), "corruption_no_answer": "int64"}
    table = by_corruption(changes, numpy.array(expected))
    assert table == {"lighter": {"1": 1.0, "2": 0.75}, "paler": {"1": 0.25}}
    assert mean_accuracy(table) == pytest.approx(
        (0.875 + 0.25) / 2
    )  # a corruption counts once, whatever its severities


def test_answers_do_not_depend_on_the_other_images_of_a_shard() -> None:
    generator = torch.Generator().manual_seed(0)
    images, index = torch.rand(5, 3, 12, 12, generator=generator), torch.tensor([7, 1, 30, 4, 2])
    labels = torch.tensor([0, 1, 0, 1, 1])
    evaluation = CorruptionEvaluation(Brightness(), safe(["C"], (2, 5), 3))
    whole = evaluation(Shard(0, images, labels, index))
    for rows in (slice(0, 2), slice(2, 5)):
        part = evaluation(Shard(1, images[rows], labels[rows], index[rows]))
        assert all(torch.equal(part[name], whole[name][rows]) for name in whole)
    assert whole["corruption_correct"].shape == (5, 2 * 19)


def test_corruption_errors_are_ratios_of_sums() -> None:
    ours = {"fog": {"1": 0.9, "2": 0.7}, "snow": {"1": 0.5}}
    theirs = {"fog": {"1": 0.8, "2": 0.3}, "snow": {"1": 0.75}}
    assert corruption_errors(ours, theirs) == pytest.approx({"fog": 0.4 / 0.9, "snow": 0.5 / 0.25})
    assert without_errors(theirs) == []
    assert without_errors({**theirs, "frost": {"1": 1.0, "2": 1.0}}) == ["frost"]
