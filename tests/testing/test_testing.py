from __future__ import annotations

import sys
from pathlib import Path

import numpy
import pytest
import torch

from foundations.environment import Environment
from foundations.errors import RunError
from foundations.modes import evaluation_mode
from testing.autoattack import autoattack, findings, members_for
from testing.evaluations import BALL_COLUMNS, AttackEvaluation, CleanEvaluation
from testing.shards import Evaluation, Shard, evaluate_in_shards
from threat_specification import L2, AnchorSet, Linf, ProjectedDisplacement
from threat_specification.attacks.base import AttackResult, Task
from threat_specification.attacks.registry import attacks_named
from threat_specification.attacks.search import Cell, Search

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
    monkeypatch.setattr(Environment, "all_reduce_sum", lambda self, array: array)
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


def ball(model: torch.nn.Module, norm: str, power: float, attacks: dict) -> AttackEvaluation:
    """As `test --adv_eval` makes it."""
    threat = {"Linf": Linf, "L2": L2}[norm]()
    return AttackEvaluation(model, threat, Cell(power, power), attacks, 40, 0, prefix="adv", kept=BALL_COLUMNS)


def test_attacks_run_on_survivors_and_only_points_of_the_set_count() -> None:
    images = torch.full((4, 1, 2, 2), 0.3)
    images[3] = 0.9  # labelled 0, predicted 1: wrong without attack
    labels = torch.zeros(4, dtype=torch.long)
    seen: list[list[bool]] = []

    def brighten(rows: list[int]) -> object:
        def attack(task: Task) -> AttackResult:
            seen.append(task.robust.tolist())
            perturbed = images.clone()
            perturbed[rows] = 0.8
            count = torch.zeros_like(task.labels)
            return AttackResult(task.robust, perturbed - images, torch.ones(4), count, count)

        return attack

    images[2] = 0.2  # brightened like the others, this one leaves the ball
    evaluation = ball(Brightness(), "Linf", 0.55, {"first": brighten([0]), "second": brighten([0, 1, 2])})
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
    evaluation = ball(model, norm, power, autoattack(norm, power, members, num_classes))
    broken = ~evaluation(shard(images, labels))["adv_correct"]
    assert broken.tolist() == [False, False, True, False, False]
    power *= 1.8
    wider = ball(model, norm, power, autoattack(norm, power, members, num_classes))
    assert (~wider(shard(images, labels))["adv_correct"]).tolist() == [False, True, True, True, False]


def test_a_member_is_seeded_by_its_shard_and_leaves_the_generator_alone() -> None:
    images, labels = torch.rand(6, 1, 8, 8) * 0.2 + 0.35, torch.zeros(6, dtype=torch.long)
    model = Brightness()
    search = Search(model, Linf().bind(images, labels), labels, torch.arange(6), Cell(0.1, 0.1), 40, seed=3)
    robust = model(images).argmax(1) == labels
    task = search.task(search.headline, robust)
    state = torch.get_rng_state()
    found = [autoattack("Linf", 0.1, ["square"], 2)["square"](task).delta for _ in range(2)]
    assert found[0].equal(found[1])
    assert state.equal(torch.get_rng_state())
    assert not bool(found[0][~robust].any())


def test_what_autoattack_itself_finds_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    """Its warnings come back as sentences; nothing is printed, and a trace function (coverage, a debugger) stays."""
    images, labels = torch.rand(6, 1, 8, 8) * 0.2 + 0.35, torch.zeros(6, dtype=torch.long)

    class Noisy(Brightness):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (super().forward(images) + 0.3 * torch.rand(len(images), 2)).softmax(1)

    class Dynamic(Brightness):
        """Looks at gradients to answer."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                (images + 0).requires_grad_(True).sum().backward()
            return super().forward(images)

    def trace(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        told = findings(Noisy(), images, labels)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert len(told) == 2 and "randomized defense" in told[0] and "probability distribution" in told[1]
    assert findings(Brightness(), images, labels) == []
    assert any("dynamic defense" in message for message in findings(Dynamic(), images, labels))
    assert findings(Brightness(), images, labels) == []
    assert capfd.readouterr() == ("", "")


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
    error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.room:
            raise self.error
        return super().forward(images)


def test_out_of_memory_shards_are_evaluated_in_parts(capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = torch.rand(23, 1, 2, 2), torch.arange(23) % 2

    def attacked(model: torch.nn.Module) -> dict[str, numpy.ndarray]:
        anchors = AnchorSet(torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]), torch.arange(2))
        threat = ProjectedDisplacement(anchors=anchors)
        chosen = attacks_named(["apgd_ce", "random_search"], 2)
        attack = AttackEvaluation(model, threat, Cell(0.5, 0.3), chosen, 5, 0)
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


def test_other_errors_end_the_evaluation_and_those_of_libraries_for_lack_of_memory_do_not() -> None:
    images, labels, model = torch.rand(10, 1, 2, 2), torch.arange(10) % 2, SmallDevice()
    words = (lambda rows: images[rows], labels, torch.arange(10), 5, [CleanEvaluation(model)], ALONE)
    model.error = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
    assert len(evaluate_in_shards(*words)["standard_correct"]) == 10
    model.error = RuntimeError("CUDA error: device-side assert triggered")
    with pytest.raises(RuntimeError, match="device-side assert"):
        evaluate_in_shards(*words)


def test_out_of_memory_in_lockstep_is_an_error() -> None:
    """Other processes take part in every pass: one that tried again alone would leave them waiting."""
    images, labels = torch.rand(10, 1, 2, 2), torch.arange(10) % 2
    words = (lambda rows: images[rows], labels, torch.arange(10), 5, [CleanEvaluation(SmallDevice())], ALONE)
    with pytest.raises(RunError, match="out of memory; use a smaller --shard_size"):
        evaluate_in_shards(*words, in_lockstep=True)
