"""Models whose robustness should be doubted are told so; an honest one is not."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest
import torch
from torch import Tensor, nn

from foundations.modes import ExpectationOverTransformation
from testing.evaluations import AttackEvaluation
from testing.gradient_masking import Probe, masking_warnings, probe, probed_rows, warnings
from testing.shards import Shard
from threat_specification import Linf
from threat_specification.attacks.base import Attack, AttackResult, Task
from threat_specification.attacks.registry import attacks_named
from threat_specification.attacks.search import Cell

ATTACKS = ["apgd_ce", "random_search"]


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


class Cut(Brightness):
    """No gradient reaches the images, and the answers are a little random."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach()) + 1e-4 * torch.randn(len(images), 2)


class Cast(torch.autograd.Function):
    """The input, with a gradient of ours."""

    @staticmethod
    def forward(context, images: Tensor, change) -> Tensor:
        context.change = change
        return images.clone()

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return context.change(gradient), None


class Negated(Brightness):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(Cast.apply(images, lambda gradient: -gradient))


class Foreign(Brightness):
    """The gradient is a fixed random field."""

    def forward(self, images: Tensor) -> Tensor:
        field = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(1))
        return super().forward(Cast.apply(images, lambda gradient: field.expand_as(gradient).clone()))


class Sine(Brightness):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + 0.02 * torch.sin(3000 * images))


def evaluation(model: nn.Module, attacks: dict[str, Attack] | None = None) -> AttackEvaluation:
    attacks = attacks_named(ATTACKS, 2) if attacks is None else attacks
    return AttackEvaluation(model, Linf(), Cell(0.01, 0.01), attacks, 5, 0)


IMAGES = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.3
SHARD = Shard(0, IMAGES, torch.zeros(8, dtype=torch.long), torch.arange(8))


def look(model: nn.Module) -> list[str]:
    return masking_warnings(
        evaluation(model), SHARD, torch.ones(8, dtype=torch.bool), numpy.zeros(8, int), numpy.zeros(8, bool)
    )


def test_images_to_probe_are_spread_over_all() -> None:
    """The first fifty of a set in the order of its classes were all of one class."""
    assert probed_rows(1000, 128).tolist() == list(range(0, 1000, 20)) and probed_rows(70, 128).tolist()[-1] == 68
    assert probed_rows(8, 128).tolist() == list(range(8)) and probed_rows(1000, 3).tolist() == [0, 333, 666]


def test_an_honest_model_raises_no_doubt() -> None:
    assert look(Brightness()) == []


@pytest.mark.parametrize(("room", "told"), [(3, "gradient has the wrong sign"), (0, "were not looked for")])
def test_as_many_images_are_probed_as_memory_allows(room: int, told: str) -> None:
    """After all shards, which were evaluated in parts, the probe ended the run with an error."""

    class Small(Negated):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    assert any(told in message for message in look(Small()))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Rounded(), "are quantised"),
        (Softmax(), "look like probabilities"),
        (Noisy(), "answers differently"),
        (Cut(), "answers differently"),
        (Cut(), "gradient vanishes"),  # noise alone was told, and no attack without gradients ran
        (Negated(), "gradient has the wrong sign"),
        (Foreign(), "gradient is not that of the loss"),
        (Sine(), "gradient is shattered"),
    ],
)
def test_a_dubious_model_is_told(model: nn.Module, words: str) -> None:
    assert any(words in message for message in look(model))


def test_masked_gradients_survive_even_unbounded_attacks() -> None:
    assert any("nothing but the pixel box leaves accuracy 1.00" in message for message in look(Rounded()))


@pytest.mark.parametrize("model", [Rounded(), Negated(), Foreign(), Sine(), Cut()])
def test_where_gradients_lead_nowhere_answers_alone_are_followed(model: nn.Module) -> None:
    """A mean of 0.4 and a border at 0.7 lie a radius of 0.35 apart: no attack with gradients gets there."""
    labels = torch.zeros(8, dtype=torch.long)
    chosen = attacks_named(["apgd_ce", "estimated_gradient"], 2)
    rows = AttackEvaluation(model, Linf(), Cell(0.42, 0.42), chosen, 10, 0)(Shard(0, IMAGES, labels, torch.arange(8)))
    assert int((rows["N_adv_broken_by"] > 0).sum()) == 8
    by_answers = rows["N_adv_broken_by"] == 2
    assert int(by_answers.sum()) >= 6
    assert int(rows["N_adv_forwards"][by_answers].min()) > 2 * 128


def test_passes_of_an_image_do_not_depend_on_its_neighbours() -> None:
    """The estimate's were counted as long as any image of the shard was under attack."""
    labels, index = torch.zeros(8, dtype=torch.long), torch.arange(8)
    evaluation = AttackEvaluation(Negated(), Linf(), Cell(0.2, 0.2), attacks_named(["estimated_gradient"], 2), 10, 0)
    images = torch.linspace(0.45, 0.68, 8).view(-1, 1, 1, 1).expand(-1, *IMAGES.shape[1:]).clone()  # the border: 0.7
    together = evaluation(Shard(0, images, labels, index))["N_adv_forwards"]
    alone = [evaluation(Shard(0, images[k : k + 1], labels[:1], index[k : k + 1]))["N_adv_forwards"] for k in range(8)]
    assert together.tolist() == torch.cat(alone).tolist() and len(together.unique()) > 2


def test_an_honest_model_is_not_asked_for_its_answers_alone() -> None:
    rows = evaluation(Brightness(), attacks_named(["estimated_gradient"], 2))(SHARD)
    assert rows["N_adv_forwards"].tolist() == [0] * 8


def test_what_the_attacks_themselves_tell() -> None:
    fine = Probe()
    assert warnings(fine, numpy.array([1, 1, 1, 0, -1]), ATTACKS) == []
    (message,) = warnings(fine, numpy.array([1, 2, 2, 0, -1]), ATTACKS)
    assert "broke 2 examples" in message
    (message,) = warnings(fine, numpy.array([1, 4, 4, 0, -1]), ["apgd-ce", "apgd-t", "fab-t", "square"])
    assert "broke 2 examples" in message
    (message,) = warnings(replace(fine, elsewhere={"here": 0.0, "there": 0.1}), numpy.array([1, 0]), ["apgd_ce"])
    assert "too high" in message and "(there) break another 10%" in message


class Ridge(nn.Module):
    """Class 1 where the first pixel is below 0.2 or above 0.9. From the middle the gradient leads up, to nowhere."""

    def forward(self, images: Tensor) -> Tensor:
        first = images.flatten(1)[:, :1] + 1e-6 * images.flatten(1)[:, 1:].sum(1, keepdim=True)
        return 10 * torch.cat([torch.full_like(first, 0.5), torch.maximum(first - 0.4, 0.7 - first - 0.01)], 1)


def lazy(task: Task) -> AttackResult:
    """Finds nothing, ever."""
    return AttackResult.none(task.examples)


def test_a_lazy_ensemble_is_told_that_other_starts_find_more() -> None:
    images = torch.full((10, 1, 4, 4), 0.5)
    shard = Shard(0, images, torch.zeros(10, dtype=torch.long), torch.arange(10))
    lazily = AttackEvaluation(Ridge(), Linf(), Cell(0.35, 0.35), {"lazy": lazy}, 10, 0)
    found = probe(lazily, shard, torch.ones(10, dtype=torch.bool))
    assert sum(found.elsewhere.values()) > 0.5
    assert sum(probe(lazily, shard, torch.zeros(10, dtype=torch.bool)).elsewhere.values()) == 0


def test_the_mean_of_passes_answers_steadily() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 1, 4, 4)
    one, many = Noisy(), ExpectationOverTransformation(Noisy(), 400)
    spread_one = torch.stack([one(images) for _ in range(20)]).std(0).mean()
    spread_many = torch.stack([many(images) for _ in range(20)]).std(0).mean()
    assert float(spread_many) < 0.15 * float(spread_one)
