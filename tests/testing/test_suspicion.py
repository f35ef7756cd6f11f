"""Models whose robustness should be doubted are told so; an honest one is not."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest
import torch
from torch import Tensor, nn

from foundations.modes import MeanOfPasses
from testing.shards import Shard
from testing.suspicion import Probe, probe, warnings
from threat_specification.attacks.base import AttackSet
from threat_specification.norms import BoundLinf

MEMBERS = ["apgd_ce", "random_search"]


class Brightness(nn.Module):
    """Class 1 when the mean pixel is above 0.7: out of reach for chance, not for a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.flatten(1).mean(1, keepdim=True) * 10
        return torch.cat([14 - brightness, brightness], 1)


class Rounded(Brightness):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).round()


class Softmax(Brightness):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(1)


class Noisy(Brightness):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 0.01 * torch.randn(len(images), 2)


def look(model: nn.Module) -> list[str]:
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.3
    shard = Shard(0, images, torch.zeros(8, dtype=torch.long), torch.arange(8))
    allowed = AttackSet.within(BoundLinf(images), 0.01, 0.01)
    found = probe(model, shard, allowed, torch.ones(8, dtype=torch.bool), 0, 5)
    return warnings(found, numpy.zeros(8, int), MEMBERS)


def test_an_honest_model_raises_no_doubt() -> None:
    assert look(Brightness()) == []


@pytest.mark.parametrize(
    ("model", "words"),
    [(Rounded(), "gradient is exactly 0"), (Softmax(), "look like probabilities"), (Noisy(), "answers differently")],
)
def test_a_dubious_model_is_told(model: nn.Module, words: str) -> None:
    assert any(words in message for message in look(model))


def test_masked_gradients_survive_even_unbounded_attacks() -> None:
    assert any("nothing but the pixel box leaves accuracy 1.00" in message for message in look(Rounded()))


def test_what_the_attacks_themselves_tell() -> None:
    fine = Probe(0.0, 0.0, False, False, 0.0)
    assert warnings(fine, numpy.array([1, 1, 1, 0, -1]), MEMBERS) == []
    (message,) = warnings(fine, numpy.array([1, 2, 2, 0, -1]), MEMBERS)
    assert "broke 2 examples" in message
    (message,) = warnings(replace(fine, more_steps_break=0.1), numpy.array([1, 0]), ["apgd_ce"])
    assert "break another 10%" in message


def test_the_mean_of_passes_answers_steadily() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 1, 4, 4)
    one, many = Noisy(), MeanOfPasses(Noisy(), 400)
    spread_one = torch.stack([one(images) for _ in range(20)]).std(0).mean()
    spread_many = torch.stack([many(images) for _ in range(20)]).std(0).mean()
    assert float(spread_many) < 0.15 * float(spread_one)
