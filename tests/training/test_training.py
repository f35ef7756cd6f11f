from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from foundations.errors import RunError
from foundations.step import Step
from training.loop import Progress, Trainer, every_epoch, stop_on_nonfinite_loss
from training.objectives import standard
from training.schedule import Schedule

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(24, 5, generator=GENERATOR)
LABELS = torch.arange(24) % 3


@dataclass
class OneBatch:
    images: torch.Tensor
    labels: torch.Tensor
    share: float = 1.0


class FixedBatches:
    """Three batches of eight, the same every epoch."""

    def __len__(self) -> int:
        return 3

    def epoch(self, number: int) -> Iterator[OneBatch]:
        for i in range(3):
            yield OneBatch(IMAGES[i * 8 : i * 8 + 8], LABELS[i * 8 : i * 8 + 8])


def schedule(total: int, warmup: int = 0, shape: str = "constant", milestones: tuple[int, ...] = ()) -> Schedule:
    return Schedule(Step(total), Step(warmup), tuple(map(Step, milestones)), 0.1, shape)


def trainer(total: int, lr: float = 0.1, **options: object) -> Trainer:
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return Trainer(model, optimizer, FixedBatches(), standard, schedule(total), lr, **options)  # type: ignore[arg-type]


def test_zero_steps_leave_the_weights_bit_equal() -> None:
    made = trainer(0)
    before = [parameter.clone() for parameter in made.model.parameters()]
    made.run()
    assert all(a.equal(b) for a, b in zip(before, made.model.parameters(), strict=True))


def test_steps_are_those_of_a_bare_loop() -> None:
    made = trainer(7)
    made.run()
    torch.manual_seed(0)
    bare = torch.nn.Linear(5, 3)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9)
    for step in range(7):
        rows = slice(step % 3 * 8, step % 3 * 8 + 8)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(bare(IMAGES[rows]), LABELS[rows]).backward()
        optimizer.step()
    assert all(a.equal(b) for a, b in zip(made.model.parameters(), bare.parameters(), strict=True))


def test_callbacks_see_every_step_and_epoch_ends() -> None:
    steps: list[tuple[int, int, bool]] = []
    epochs: list[int] = []
    trainer(
        7,
        callbacks=(
            lambda progress: steps.append((progress.step.iteration, progress.epoch, progress.is_end)),
            every_epoch(lambda progress: epochs.append(progress.step.iteration)),
        ),
    ).run()
    assert steps == [(i + 1, i // 3, i == 6) for i in range(7)]
    assert epochs == [3, 6, 7]


def test_a_loss_that_is_not_finite_stops_training() -> None:
    with pytest.raises(RunError, match=r"the loss became (nan|inf) in epoch 1; try a smaller --lr"):
        trainer(600, lr=1e38, callbacks=(every_epoch(stop_on_nonfinite_loss),)).run()


def test_totals_are_means_over_the_epoch() -> None:
    seen: list[Progress] = []
    made = trainer(3, lr=1e-20, callbacks=(every_epoch(seen.append),))
    logits = made.model(IMAGES).detach()
    expected = torch.nn.functional.cross_entropy(logits, LABELS)
    made.run()
    totals = seen[0].totals
    assert float(totals.loss) / totals.batches == pytest.approx(float(expected), rel=1e-5)
    assert float(totals.correct) / totals.batches == pytest.approx(float((logits.argmax(1) == LABELS).float().mean()))


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (schedule(5), [1, 1, 1, 1, 1]),
        (schedule(6, warmup=2), [0.5, 1, 1, 1, 1, 1]),
        (schedule(6, shape="milestones", milestones=(2, 4)), [1, 1, 0.1, 0.1, 0.01, 0.01]),
        (schedule(4, shape="cosine"), [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]),
        (schedule(5, warmup=1, shape="cosine"), [1] + [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]),
    ],
)
def test_learning_rates_follow_the_written_schedule(made: Schedule, expected: list[float]) -> None:
    assert [made.factor(i) for i in range(len(expected))] == pytest.approx(expected)
