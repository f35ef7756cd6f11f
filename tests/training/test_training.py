"""The loop, against bare PyTorch; schedules, against their formulas; what an attack and a step leave behind."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from foundations.step import Step
from tests.training.sources import IMAGES, LABELS, Whole, net, state_of
from tests.training.trainers import LINF, ROWS, Spare, schedule, smooth, trainer
from training.batch import Batch
from training.loop import Progress, every_epoch
from training.network import (
    MixedPrecision,
    moving_average,
)
from training.objectives import Parts, standard
from training.optimizers import OPTIMIZERS
from training.schedule import Schedule
from training.weight_perturbation import AdversarialWeights


def test_zero_steps_leave_the_weights_bit_equal() -> None:
    made = trainer(0, objective=Parts(adversaries=[LINF]))
    before = state_of(made.model)
    made.run()
    assert all(value.equal(before[name]) for name, value in made.model.state_dict().items())


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_steps_are_those_of_a_bare_loop(clip: float) -> None:
    made = trainer(7, clip_grad=clip)
    made.run()
    bare = smooth()
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9)
    for step in range(7):
        rows = ROWS[step % 3]
        optimizer.zero_grad()
        nn.functional.cross_entropy(bare(IMAGES[rows]), LABELS[rows]).backward()
        if clip:
            norm = torch.cat([p.grad.flatten() for p in bare.parameters()]).norm()  # type: ignore[union-attr]
            for parameter in bare.parameters():
                parameter.grad *= min(1.0, clip / (float(norm) + 1e-6))  # type: ignore[operator]
        optimizer.step()
    for a, b in zip(made.model.parameters(), bare.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6) if clip else a.equal(b)


def test_accumulated_parts_make_the_step_of_the_whole_batch() -> None:
    """And steps count whole batches: the schedule, the epochs and the callbacks are those of one part."""
    runs = []
    for parts in (1, 2):
        rates: list[tuple[int, int, float]] = []
        made = trainer(
            7,
            accumulation=parts,
            schedule=schedule(7, warmup=2, shape="milestones", milestones=(3, 5)),
            callbacks=[lambda p, seen=rates: seen.append((p.step.iteration, p.step.epoch, p.lr))],  # type: ignore[misc]
        )
        made.run()
        runs.append((made.model.state_dict(), rates))
    assert [lr for _, _, lr in runs[1][1]] == pytest.approx([0.05, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert runs[0][1] == runs[1][1]
    assert all(torch.allclose(runs[0][0][name], runs[1][0][name], atol=1e-6) for name in runs[0][0])


def test_a_run_in_two_pieces_is_the_run() -> None:
    """Callbacks, learning rates and totals go on in the middle of an epoch."""
    seen: list[Progress] = []
    whole = trainer(8, schedule=schedule(8, shape="cosine"), callbacks=[seen.append])
    whole.run()
    lrs = [progress.lr for progress in seen]
    first = trainer(8, schedule=schedule(8, shape="cosine"))

    def stop(progress: Progress) -> None:
        if progress.step.iteration == 4:
            raise KeyboardInterrupt

    first.callbacks = [stop]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    later: list[Progress] = []
    second = trainer(8, schedule=schedule(8, shape="cosine"), callbacks=[later.append])
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.iteration, second.totals = first.iteration, first.totals
    second.run()
    assert [progress.lr for progress in later] == lrs[4:]
    assert [progress.totals.batches for progress in later[:2]] == [3, 3]
    assert all(value.equal(second.model.state_dict()[name]) for name, value in whole.model.state_dict().items())


def test_callbacks_see_every_step_and_epoch_ends() -> None:
    steps: list[tuple[int, int, bool]] = []
    epochs: list[int] = []
    trainer(
        7,
        callbacks=(
            lambda progress: steps.append((progress.step.iteration, progress.step.epoch, progress.is_end)),
            every_epoch(lambda progress: epochs.append(progress.step.iteration)),
        ),
    ).run()
    assert steps == [(i + 1, i // 3, i == 6) for i in range(7)]
    assert epochs == [3, 6, 7]


def test_totals_are_means_over_the_epoch() -> None:
    seen: list[Progress] = []
    made = trainer(3, lr=1e-20, accumulation=2, callbacks=(every_epoch(seen.append),))
    logits = made.model(IMAGES).detach()
    expected = nn.functional.cross_entropy(logits, LABELS)
    made.run()
    totals = seen[0].totals
    assert totals.seen == {"loss": 3.0, "clean": 3.0} and totals.batches == 3
    assert float(totals.sums["loss"]) / 3 == pytest.approx(float(expected), rel=1e-5)
    right = (logits.argmax(1) == LABELS).float().mean()
    assert float(totals.sums["clean"]) / 3 == pytest.approx(float(right))


def torch_onecycle(total: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    return rates


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (schedule(5), [1, 1, 1, 1, 1]),
        (schedule(6, warmup=2), [0.5, 1, 1, 1, 1, 1]),
        (schedule(6, shape="milestones", milestones=(2, 4)), [1, 1, 0.1, 0.1, 0.01, 0.01]),
        (schedule(4, shape="cosine"), [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]),
        (schedule(5, warmup=1, shape="cosine"), [1] + [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]),
        (schedule(40, shape="onecycle"), torch_onecycle(40)),
    ],
)
def test_learning_rates_follow_the_written_schedule(made: Schedule, expected: list[float]) -> None:
    assert [made.factor(i) for i in range(len(expected))] == pytest.approx(expected, abs=1e-9)


def test_weight_perturbation_is_the_published_one_and_leaves_nothing_behind() -> None:
    """w + gamma |w| g / |g| for matrices, biases as they are; bit-equal weights and buffers afterwards, no gradient."""
    model = net()
    objective = Parts(adversaries=[LINF])
    parts = objective.make(model, Batch(Whole()), Step(0, 0))
    before = state_of(model)
    twin = net()
    objective.score(twin, parts).loss.backward()
    with AdversarialWeights(0.1)(model, objective, parts):
        for (name, moved), weight in zip(model.named_parameters(), twin.parameters(), strict=True):
            expected = weight.detach()
            if weight.dim() > 1:
                assert weight.grad is not None
                expected = expected + 0.1 * expected.norm() * weight.grad / weight.grad.norm()
            assert torch.allclose(moved, expected, atol=1e-6), name
        assert float(objective.score(model, parts).loss.detach()) > float(objective.score(net(), parts).loss.detach())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.equal(before[name]) for name, parameter in model.named_parameters())


def test_what_is_told_of_a_step_is_of_the_weights_as_they_are() -> None:
    """The loss at perturbed weights would stand beside that of trainings without them."""
    model, objective = net(), Parts(adversaries=[LINF])
    parts = objective.make(model, Batch(Whole()), Step(0, 0))
    plain = objective.score(net(), parts)
    with AdversarialWeights(0.1)(model, objective, parts) as told:
        assert told is not None and float(told.loss.detach()) == pytest.approx(float(plain.loss.detach()))
        assert float(told.loss.detach()) < float(objective.score(model, parts).loss.detach())
    made = trainer(1, model=net(), objective=objective, perturbation=AdversarialWeights(0.1))
    made.run()
    plainly = trainer(1, model=net(), objective=objective)
    plainly.run()
    assert float(made.totals.sums["loss"]) == pytest.approx(float(plainly.totals.sums["loss"]), rel=1e-5)


def test_weights_are_left_alone_without_an_adversary() -> None:
    model = net()
    parts = standard.make(model, Batch(Whole()), Step(0, 0))
    before, step = state_of(model), AdversarialWeights(0.1)
    with step(model, standard, parts):
        assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_weights_that_a_network_does_not_use_are_left_alone() -> None:
    """As the second first block of RobustBench's Carmon2019Unlabeled and its kin, which is never asked."""
    model = Spare(net())
    objective = Parts(adversaries=[LINF])
    parts = objective.make(model, Batch(Whole()), Step(0, 0))
    before = state_of(model)
    with AdversarialWeights(0.1)(model, objective, parts):
        moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
        assert moved and "spare.weight" not in moved
    assert all(parameter.equal(before[name]) for name, parameter in model.named_parameters())


def test_statistics_see_a_batch_once_with_weight_perturbation() -> None:
    made = trainer(1, model=net(), objective=Parts(adversaries=[LINF]), perturbation=AdversarialWeights(0.1))
    made.run()
    assert int(made.model[2].num_batches_tracked) == 1  # type: ignore[index, arg-type]


def test_passes_run_in_16_bits_and_answer_in_32() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    seen: list[torch.Tensor] = []
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    answers = MixedPrecision(network, "bf16", channels_last=True)(IMAGES)
    assert seen[0].dtype == torch.bfloat16 and answers.dtype == torch.float32
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    exact = MixedPrecision(network)(IMAGES)
    assert 0 < float((exact - answers).detach().abs().max()) < 0.05


def test_moving_average_is_the_recursion() -> None:
    """With a decay that grows to the one given: after 10 steps of 0.999 the first weights are 1 in 10,000."""
    model = net()
    average = moving_average(model, 0.6)
    expected = None
    for step in range(12):
        with torch.no_grad():
            model[1].weight.add_(step + 1)
            model[2].running_mean.add_(1)
        average.update_parameters(model)
        current = torch.cat([model[1].weight.flatten(), model[2].running_mean]).detach().double()
        decay = min(0.6, (1 + step) / (10 + step))
        expected = current if expected is None else decay * expected + (1 - decay) * current
    got = torch.cat([average.module[1].weight.flatten(), average.module[2].running_mean]).detach().double()
    assert expected is not None and torch.allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.9, 0.95, 0.9999])
def test_the_moving_average_of_what_stays_is_that(decay: float) -> None:
    """Whole numbers too: an average of 7 and 7 was 6, which Swin's tables of positions do not survive."""
    model = nn.Linear(2, 2)
    model.register_buffer("places", torch.arange(169))
    average = moving_average(model, decay)
    for _ in range(50):
        average.update_parameters(model)
    assert all(values.equal(average.module.state_dict()[name]) for name, values in model.state_dict().items())


def test_optimizers_take_what_they_know() -> None:
    options = {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.8, "nesterov": True}
    sgd, adamw = (OPTIMIZERS[name](smooth().parameters(), **options) for name in ("sgd", "adamw"))
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["nesterov"] and sgd.defaults["momentum"] == 0.8
    assert isinstance(adamw, torch.optim.AdamW) and adamw.defaults["weight_decay"] == 0.01
