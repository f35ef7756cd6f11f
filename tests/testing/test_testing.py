from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

from foundations.environment import Environment
from foundations.errors import RunError
from foundations.modes import evaluation_mode
from testing.autoattack import members_for, run_member
from testing.evaluations import BallEvaluation, CleanEvaluation, autoattack
from testing.nonisotropic import Cell, NonisotropicEvaluation
from testing.shards import Evaluation, Shard, evaluate_in_shards
from threat_specification import AnchorSet, ProjectedDisplacement

ALONE = Environment(root_dir=Path("/nowhere"), quiet=True)
LOUD = Environment(root_dir=Path("/nowhere"))


class Brightness(torch.nn.Module):
    """Class 1 when the mean pixel is above a half."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.offset = torch.nn.Parameter(torch.zeros(num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        brightness = images.flatten(1).mean(1, keepdim=True) * 10
        others = torch.zeros(len(images), len(self.offset) - 2)
        return torch.cat([10 - brightness, brightness, others - 5], 1) + self.offset


def shard(images: torch.Tensor, labels: torch.Tensor, number: int = 0) -> Shard:
    return Shard(number, images, labels, torch.arange(len(labels)) + 100)


def test_every_example_counts_once_whatever_the_shards() -> None:
    images = torch.rand(17, 1, 2, 2)
    labels = torch.arange(17) % 2
    index = torch.tensor([0, 3, 4, 8, 11, 12, 16])
    expected = Brightness()(images[index]).argmax(1)
    for size in (1, 3, 7, 100):
        arrays = evaluate_in_shards(
            lambda rows: images[rows], labels, index, size, [CleanEvaluation(Brightness())], ALONE
        )
        assert arrays["standard_prediction"].tolist() == expected.tolist()
        assert arrays["standard_correct"].dtype == numpy.bool_


def test_processes_share_the_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = torch.rand(10, 1, 2, 2), torch.zeros(10, dtype=torch.long)
    monkeypatch.setattr(Environment, "merge", lambda self, array: array)
    parts = [
        evaluate_in_shards(
            lambda rows: images[rows],
            labels,
            torch.arange(10),
            3,
            [CleanEvaluation(Brightness())],
            Environment(root_dir=Path("/nowhere"), rank=rank, world_size=3, quiet=True),
        )["standard_prediction"]
        for rank in range(3)
    ]
    assert sum(parts).tolist() == Brightness()(images).argmax(1).tolist()  # type: ignore[union-attr]


def test_attacks_run_on_survivors_and_only_points_of_the_set_count() -> None:
    images = torch.full((4, 1, 2, 2), 0.3)
    images[3] = 0.9  # labelled 0, predicted 1: wrong without attack
    labels = torch.zeros(4, dtype=torch.long)
    seen: list[list[bool]] = []

    def brighten(rows: list[int]) -> object:
        def attack(_: Shard, standing: torch.Tensor) -> torch.Tensor:
            seen.append(standing.tolist())
            perturbed = images.clone()
            perturbed[rows] = 0.8
            return perturbed

        return attack

    images[2] = 0.2  # brightened like the others, this one leaves the ball
    evaluation = BallEvaluation(
        Brightness(),
        "Linf",
        0.55,
        {"first": brighten([0]), "second": brighten([0, 1, 2])},  # type: ignore[dict-item]
    )
    arrays = evaluation(shard(images, labels))
    assert seen == [[True, True, True, False], [False, True, True, False]]
    assert arrays["adv_broken_by"].tolist() == [1, 2, 0, -1]
    assert arrays["adv_correct"].tolist() == [False, False, True, False]


@pytest.mark.parametrize("num_classes", [2, 3, 4, 10])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_autoattack_with_any_number_of_classes(num_classes: int, norm: str) -> None:
    """On a linear model the optimum is known: the mean moves by the radius (l-inf) or radius / sqrt(D) (l2)."""
    levels = torch.tensor([0.38, 0.42, 0.46, 0.58, 0.62])
    images = levels.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()
    labels = (levels > 0.5).long()
    power = 0.05 if norm == "Linf" else 0.05 * 8
    members = [name for name in members_for("auto", num_classes) if name != "square"]
    model = Brightness(num_classes)
    evaluation = BallEvaluation(model, norm, power, autoattack(model, num_classes, norm, power, members, seed=0))
    broken = ~evaluation(shard(images, labels))["adv_correct"]
    assert broken.tolist() == [False, False, True, False, False]
    power *= 1.8
    wider = BallEvaluation(model, norm, power, autoattack(model, num_classes, norm, power, members, seed=0))
    assert (~wider(shard(images, labels))["adv_correct"]).tolist() == [False, True, True, True, False]


def test_a_member_is_seeded_by_its_shard_and_leaves_the_generator_alone() -> None:
    images, labels = torch.rand(6, 1, 8, 8) * 0.2 + 0.35, torch.zeros(6, dtype=torch.long)
    standing = Brightness()(images).argmax(1) == labels
    state = torch.get_rng_state()
    found = [run_member("square", Brightness(), shard(images, labels), standing, "Linf", 0.1, 2, 3) for _ in range(2)]
    assert found[0].equal(found[1])
    assert state.equal(torch.get_rng_state())
    assert found[0][~standing].equal(images[~standing])


def test_modes_come_back() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Dropout())
    model[1].eval()
    model.train(True)
    model[0].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, False, True]


class SmallDevice(Brightness):
    """Has memory for three images at a time."""

    room = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images)


def test_out_of_memory_shards_are_evaluated_in_parts(capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = torch.rand(23, 1, 2, 2), torch.arange(23) % 2

    def attacked(model: torch.nn.Module) -> dict[str, numpy.ndarray]:
        anchors = AnchorSet(torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]), torch.arange(2))
        threat = ProjectedDisplacement(anchors=anchors)
        attack = NonisotropicEvaluation(model, threat, Cell(0.5, 0.3), [], ["apgd_ce", "random_search"], 5, 0)
        evaluations: list[Evaluation] = [CleanEvaluation(model), attack]
        return evaluate_in_shards(lambda rows: images[rows], labels, torch.arange(23), 10, evaluations, LOUD)

    whole, parts = attacked(Brightness()), attacked(SmallDevice())
    told = capsys.readouterr().err.splitlines()
    assert told == [f"out of memory: going on with {n} images at a time" for n in (5, 3)]
    assert whole.keys() == parts.keys()
    for name in whole:
        assert numpy.allclose(whole[name].astype(float), parts[name].astype(float), atol=1e-6), name
    with pytest.raises(RunError, match="out of memory with a single image"):
        model = SmallDevice()
        model.room = 0
        attacked(model)


def test_out_of_memory_in_lockstep_is_an_error() -> None:
    """Other processes take part in every pass: one that tried again alone would leave them waiting."""
    images, labels = torch.rand(10, 1, 2, 2), torch.arange(10) % 2
    words = (lambda rows: images[rows], labels, torch.arange(10), 5, [CleanEvaluation(SmallDevice())], ALONE)
    with pytest.raises(RunError, match="out of memory; use a smaller --shard_size"):
        evaluate_in_shards(*words, in_lockstep=True)
