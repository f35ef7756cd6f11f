"""Whose answers depend on the other images of the batch, and whose do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.registry import build_model
from testing.among_others import depends_on_others
from testing.robust_accuracy import RobustAccuracy, robust_accuracy
from tests.models.test_models import Spec
from threat_specification import Linf

IMAGES = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def convolution(**options: bool) -> nn.Module:
    """A convolution, batch normalisation and ReLU, whose answers are large."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8, **options), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 13 * 13, 5)]
    return nn.Sequential(*layers)


class Hidden(nn.Module):
    """A network that `eval` does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.network = [convolution()]

    def forward(self, images: Tensor) -> Tensor:
        answers: Tensor = self.network[0](images)
        return answers


def asked(model: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    with torch.no_grad():
        return depends_on_others(model, images, model(images))


@pytest.mark.parametrize("model", [convolution(track_running_stats=False), Hidden(), convolution().train()])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_batch_statistics_are_seen(model: nn.Module, count: int) -> None:
    assert asked(model, IMAGES[:count]) and not asked(model, IMAGES[:1])


def test_an_answer_that_others_take_away_is_seen() -> None:
    """NaN is no small difference."""
    lost = lambda images: torch.where(images.mean() > IMAGES.mean(), torch.nan, images.flatten(1)[:, :3])  # noqa: E731
    assert asked(lost, IMAGES.sort(dim=0, descending=True).values)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["lenet", "conv", "resnet_8"])
def test_networks_in_eval_mode_raise_no_doubt(name: str, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    model = build_model(name, Spec(1, 28, 28)).eval().to(kind)
    assert not asked(lambda images: model(images.to(kind)).float(), IMAGES)


def test_answers_without_a_spread_or_with_infinity_raise_no_doubt() -> None:
    """Such as classes that a network rules out, and images without an answer."""
    assert not asked(lambda images: torch.zeros(len(images), 3), IMAGES)
    ruled_out = torch.tensor([0.0, -torch.inf, torch.nan])
    assert not asked(lambda images: images.flatten(1)[:, :3] + ruled_out, IMAGES)


@pytest.mark.parametrize("tracks", [True, False])
def test_a_figure_that_the_size_of_shards_changes_is_told(tracks: bool) -> None:
    model = convolution(track_running_stats=tracks)
    labels = torch.arange(6) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        words: dict[str, Any] = {"attacks": ["apgd_ce"], "steps": 2, "details": True}
        found = [robust_accuracy(model, IMAGES, labels, Linf(), 0.1, shard_size=size, **words) for size in (6, 3)]
    for each in found:
        assert isinstance(each, RobustAccuracy)
        assert any("depend on the other images of the batch" in told for told in each.warnings) == (not tracks)
