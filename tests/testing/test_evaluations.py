"""Points count by where they are, whatever an attack claims; attacks are given the set that was asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy
import pytest
import torch
from torch import Tensor, nn

from foundations.errors import RunError
from testing.evaluations import AttackEvaluation
from testing.gradient_masking import masking_warnings
from testing.robust_accuracy import robust_accuracy
from testing.shards import Shard
from tests.testing.test_gradient_masking import Brightness
from tests.threat_specification.attacks.linear import directions
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.attacks.base import NO_CLASS, AttackResult, Task, predicted
from threat_specification.attacks.registry import ATTACKS
from threat_specification.attacks.search import Cell

IMAGES = torch.full((6, 1, 4, 4), 0.5)
SHARD = Shard(0, IMAGES, torch.zeros(6, dtype=torch.long), torch.arange(6))
ANCHORS = AnchorSet(torch.full((1, 1, 4, 4), 0.9), torch.tensor([1]))  # a change of c everywhere has PD 2 c / 0.4
SMALL, LARGE = Cell(1.3, 0.3), Cell(2.0, 0.4)


def claims(delta: Tensor):
    """An attack that says it broke everything with the same change."""

    def attack(task: Task) -> AttackResult:
        count = torch.zeros_like(task.labels)
        return AttackResult(task.robust, delta.expand_as(IMAGES), torch.ones(len(count)), count, count)

    return attack


def evaluate(delta: Tensor, headline: Cell, grid=(), **form) -> dict[str, Tensor]:
    threat = ProjectedDisplacement(anchors=ANCHORS, **form)
    return AttackEvaluation(Brightness(), threat, headline, {"fake": claims(delta)}, 1, 0, list(grid))(SHARD)


def test_a_change_counts_in_every_set_it_lies_in_and_in_no_other() -> None:
    """+0.25 everywhere: PD 1.25, l-inf 0.25; the border of the model is at +0.2."""
    grid = [Cell(1.3, 0.3), Cell(1.2, 0.3), Cell(1.3, 0.24), Cell(2.0, 0.4), Cell(math.inf, 0.25), Cell(1.25, math.inf)]
    rows = evaluate(torch.full((1, 1, 4, 4), 0.25), SMALL, grid)
    cells = sorted({SMALL, *grid})
    robust = {cell: bool(rows["N_adv_cells"][:, i].all()) for i, cell in enumerate(cells)}
    assert {cell for cell, still in robust.items() if still} == {Cell(1.2, 0.3), Cell(1.3, 0.24)}
    assert rows["N_adv_broken_by"].tolist() == [1] * 6
    assert torch.allclose(rows["N_adv_gauge"], torch.tensor(max(1.25 / 1.3, 0.25 / 0.3)))
    assert torch.allclose(rows["N_adv_threat"], torch.tensor(1.25))


def test_a_change_that_does_not_break_the_model_does_not_count() -> None:
    rows = evaluate(torch.full((1, 1, 4, 4), 0.15), SMALL)
    assert rows["N_adv_correct"].all() and rows["N_adv_gauge"].isinf().all()
    assert torch.allclose(rows["N_adv_Linf"], torch.tensor(0.15))  # the strongest point tried is kept all the same


def test_a_frozen_background_may_not_move() -> None:
    form = {"segmented": True, "mask_source": lambda x: torch.arange(4).view(1, 1, 1, 4).expand(len(x), 1, 4, 4) < 3}
    delta = torch.full((1, 1, 4, 4), 0.28)
    assert evaluate(delta, LARGE, **form)["N_adv_correct"].all()
    delta = delta * (torch.arange(4) < 3)
    assert not evaluate(delta, LARGE, **form)["N_adv_correct"].any()
    everywhere = evaluate(torch.full((1, 1, 4, 4), 0.28), LARGE, background="radius", **form)
    assert not everywhere["N_adv_correct"].any()


@pytest.mark.parametrize(("excess", "counts"), [(5e-6, True), (1e-4, False)])
@pytest.mark.parametrize("bound", ["threat", "radius"])
def test_one_slack_for_every_bound(bound: str, excess: float, counts: bool) -> None:
    """Points that float32 cannot tell from the border are inside, in accuracy and gauge alike; others are not."""
    delta = 0.25 * (1 + excess)
    headline = Cell(1.25, 1.0) if bound == "threat" else Cell(10.0, 0.25)
    rows = evaluate(torch.full((1, 1, 4, 4), delta), headline)
    assert bool(rows["N_adv_correct"].any()) is not counts
    assert bool((rows["N_adv_gauge"] <= 1).all()) is counts


@pytest.mark.parametrize("headline", [Cell(1.3, math.inf), Cell(math.inf, 0.3)])
def test_the_gauge_without_a_bound_is_a_number(headline: Cell) -> None:
    """Two images of six are broken; nothing is found for the others."""
    attacks = {"up": breaks([0, 1], 0.28, [])}
    rows = AttackEvaluation(Two(), ProjectedDisplacement(anchors=ANCHORS), headline, attacks, 7, 11)(SHARD)
    assert not rows["N_adv_gauge"].isnan().any()
    assert rows["N_adv_gauge"].isfinite().tolist() == [True, True, False, False, False, False]


class NotANumber(Brightness):
    """NaN in one logit for bright images, of which argmax would make class 0."""

    def __init__(self, value: float = math.nan) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        logits[images.flatten(1).amax(1) > 0.6, 1] = self.value
        return logits


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_no_answer(value: float) -> None:
    """Images of class 0 for which a model under attack has no answer are wrong, and are told apart."""
    threat = ProjectedDisplacement(anchors=ANCHORS)
    evaluation = AttackEvaluation(NotANumber(value), threat, SMALL, {"up": breaks([0, 1], 0.28, [])}, 7, 11)
    rows = evaluation(SHARD)
    assert rows["N_adv_broken_by"].tolist() == [1, 1, 0, 0, 0, 0]
    assert rows["N_adv_no_answer"].tolist() == [True, True, False, False, False, False]
    of_all = (rows[f"N_adv_{name}"].numpy() for name in ("broken_by", "no_answer"))
    told = masking_warnings(evaluation, SHARD, rows["N_adv_correct"], *of_all)
    assert any("hold NaN for 2 of 6" in message for message in told)


def test_no_answer_for_an_image_itself_is_an_error() -> None:
    images = IMAGES.clone()
    images[5, 0, 0, 0] = 0.9
    with pytest.raises(RunError, match=r"not finite .* for 1 of 6 images, the first is number 5"):
        robust_accuracy(
            NotANumber(), images, SHARD.labels, ProjectedDisplacement(anchors=ANCHORS), 0.01, attacks=["pgd"]
        )


def test_a_row_without_a_finite_logit_is_no_answer() -> None:
    rows = torch.tensor([[1, -math.inf], [-math.inf, -math.inf], [math.inf, 0], [math.nan, 0]])
    assert predicted(rows).tolist() == [0, NO_CLASS, NO_CLASS, NO_CLASS]


# DLR needs three classes; `single_moves` tries safe changes, which a set of pixels does not have.
@pytest.mark.parametrize("name", [name for name in ATTACKS if "dlr" not in name and name != "single_moves"])
def test_every_attack_keeps_a_point_where_the_model_has_no_answer(name: str) -> None:
    model = NotANumber()
    evaluation = AttackEvaluation(model, ProjectedDisplacement(anchors=ANCHORS), LARGE, {name: ATTACKS[name]}, 20, 0)
    rows = evaluation(replace(SHARD, images=IMAGES + 0.095))
    assert not rows["N_adv_correct"].any() and rows["N_adv_no_answer"].all()


class Two(nn.Module):
    """Class 1 where the brightest pixel is above 0.7, class 2 where the darkest is below 0.3, class 0 else."""

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return torch.stack([torch.full((len(flat),), 0.2), flat.amax(1) - 0.5, 0.5 - flat.amin(1)], 1) * 10


def breaks(rows: list[int], change: float, seen: list[Task]):
    """An attack that changes a pixel of some images, and keeps what it was given."""

    def attack(task: Task) -> AttackResult:
        seen.append(task)
        delta = torch.zeros_like(task.examples)
        for row in rows:
            if bool(task.robust[row]):
                delta[row, 0, 0, 0] = change
        count = torch.ones_like(task.labels)
        return AttackResult(torch.zeros_like(task.robust), delta, torch.zeros(len(count)), count, count * 2)

    return attack


def test_every_attack_counts_on_what_the_others_left() -> None:
    """Two that break different images: all are broken, each by the one that did it; the passes of both are added."""
    first, second = [], []
    attacks = {"up": breaks([0, 2], 0.28, first), "down": breaks([1, 2, 3], -0.28, second)}
    threat = ProjectedDisplacement(anchors=ANCHORS)
    shard = Shard(0, IMAGES, SHARD.labels, torch.arange(6) + 4)  # whatever their numbers: the fifth is 8
    rows = AttackEvaluation(Two(), threat, SMALL, attacks, 7, 11)(shard)
    assert rows["N_adv_broken_by"].tolist() == [1, 2, 1, 2, 0, 0]
    assert rows["N_adv_correct"].tolist() == [False] * 4 + [True] * 2
    assert [task.robust.tolist() for task in first] == [[True] * 6]
    assert [task.robust.tolist() for task in second] == [[False, True, False, True, True, True]]
    assert rows["N_adv_forwards"].tolist() == [2] * 6 and rows["N_adv_backwards"].tolist() == [4] * 6


def test_the_whole_curve_is_found_for_broken_examples_too() -> None:
    """The attack that finds the smallest sets is given all that the model gets right, in the headline cell alone."""
    seen: list[Task] = []
    attacks = {"first": breaks([0, 1], 0.28, []), "minimal_gauge": breaks([0], 0.21, seen)}
    images = IMAGES.clone()
    images[5, 0, 0, 0] = 0.9  # wrong without any attack
    threat = ProjectedDisplacement(anchors=ANCHORS)
    evaluation = AttackEvaluation(Two(), threat, SMALL, attacks, 7, 11, [LARGE])
    rows = evaluation(Shard(0, images, SHARD.labels, SHARD.index))
    assert [task.robust.tolist() for task in seen] == [
        [True] * 5 + [False],
        [False, False, True, True, True, False],
    ]
    assert rows["N_adv_gauge"].tolist() == pytest.approx([0.21 / 0.3, 0.28 / 0.3, math.inf, math.inf, math.inf, 0.0])
    assert rows["N_adv_broken_by"].tolist() == [1, 1, 0, 0, 0, -1]


@dataclass
class Recorder:
    """An attack that breaks nothing and keeps its tasks."""

    tasks: list[Task] = field(default_factory=list)

    def __call__(self, task: Task) -> AttackResult:
        self.tasks.append(task)
        return AttackResult.none(task.examples)


class FirstPixels(nn.Module):
    """The class is told by the first K pixels: right on images made so."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :4] * 10


def labelled(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 + 0.4 * torch.rand(count, 1, 6, 6, generator=generator)
    labels = torch.randint(4, (count,), generator=generator)
    images.flatten(1)[torch.arange(count), labels] = 0.9
    return images, labels


def test_attacks_are_given_the_set_the_labels_and_the_steps_of_the_evaluation() -> None:
    """Threat by loops over all anchors, bounds by hand; shards have other labels, in another order."""
    generator = torch.Generator().manual_seed(3)
    anchors = AnchorSet(torch.rand(20, 1, 6, 6, generator=generator), torch.arange(20) % 4)
    headline, wide = Cell(0.13, 0.2), Cell(0.3, 0.4)
    recorder = Recorder()
    threat = ProjectedDisplacement(anchors=anchors)
    evaluation = AttackEvaluation(FirstPixels(), threat, headline, {"recorder": recorder}, 17, 23, [wide])
    shards = []
    for number, seed in enumerate((5, 6)):
        images, labels = labelled(9, seed)
        shards.append(Shard(number, images, labels, torch.arange(9) + 100 * number))
        evaluation(shards[-1])
    assert len(recorder.tasks) == 4
    for task, (shard, cell) in zip(
        recorder.tasks, [(shard, cell) for shard in shards for cell in (headline, wide)], strict=True
    ):
        assert task.steps == 17 and task.seed == 23
        assert task.labels.equal(shard.labels) and task.index.equal(shard.index) and task.robust.all()
        assert torch.allclose(task.allowed.lower, torch.maximum(-shard.images, torch.tensor(-cell.radius)))
        assert torch.allclose(task.allowed.upper, torch.minimum(1 - shard.images, torch.tensor(cell.radius)))
        delta = 0.3 * (torch.rand(9, 1, 6, 6, generator=generator) - 0.5)
        gauge = task.allowed.bound.evaluate(delta) / task.allowed.threshold
        for row in range(9):
            d = delta[row].flatten().double().numpy()
            along = directions(anchors, shard.images[row], int(shard.labels[row])) @ d
            expected = max(along.max() / cell.threshold, numpy.abs(d).max() / cell.radius)
            assert float(gauge[row]) == pytest.approx(expected, rel=1e-4)


def test_points_that_the_projection_could_not_solve_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are scaled into the set, where attacks are weaker."""
    from threat_specification.projected_displacement import projection

    threat = ProjectedDisplacement(anchors=ANCHORS)
    evaluation = AttackEvaluation(Brightness(), threat, SMALL, {"pgd": ATTACKS["pgd"]}, 4, 0)
    assert not evaluation(SHARD)["N_adv_scaled"].any()
    monkeypatch.setattr(projection, "ROUNDS", 0)
    monkeypatch.setattr(projection, "halfspace_multipliers", lambda *known: [])
    rows = evaluation(SHARD)
    assert rows["N_adv_scaled"].any()
    of_all = [rows[f"N_adv_{name}"].numpy() for name in ("broken_by", "no_answer", "scaled")]
    told = masking_warnings(evaluation, SHARD, rows["N_adv_correct"], *of_all)
    points, examples = int(of_all[2].sum()), int((of_all[2] > 0).sum())
    assert any(f"could not solve {points} points of {examples} examples" in message for message in told)
    assert not any(
        "could not solve" in each for each in masking_warnings(evaluation, SHARD, rows["N_adv_correct"], *of_all[:2])
    )
