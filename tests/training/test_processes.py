"""Training in a group of processes: what is communicated, and whether it is the training of one process."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from models.normalize import Normalize
from runners.train.runner import Train
from tests.training.sources import IMAGES, net, state_of
from tests.training.trainers import LINF, PD, Spare, smooth, trainer
from training.adversaries import PGD
from training.network import (
    MixedPrecision,
    broadcast_buffers,
    distributed,
    has_idle_weights,
    plain,
    unequal_buffers,
)
from training.objectives import Parts
from training.synchronised import synchronise
from training.weight_perturbation import AdversarialWeights


@pytest.fixture
def alone_in_a_group() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("adversaries", [[], [LINF], [LINF, PD]])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_communicates_once_whatever_its_adversaries(
    adversaries: list[PGD], accumulation: int, alone_in_a_group: None
) -> None:
    """Gradients of one bucket are reduced once a step: neither attacks nor parts of a batch add to it.

    AWP adds one sum for each part with adversaries, so that all processes stand at the same perturbed weights.
    """
    reduced = []

    def count(state, bucket):
        reduced.append(bucket.buffer().clone())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    model = distributed(MixedPrecision(smooth()), torch.device("cpu"))
    model.register_comm_hook(None, count)  # type: ignore[operator]
    passes: list[int] = []  # attacks go by: with statistics in the model, each pass of the wrapper would communicate
    model.register_forward_hook(lambda *_: passes.append(1))
    others = {name: getattr(torch.distributed, name) for name in ("all_reduce", "broadcast", "all_gather")}
    called: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in others:
            patch.setattr(torch.distributed, name, lambda *a, n=name, **k: called.append(n))
        made = trainer(
            5,
            model=model,
            accumulation=accumulation,
            objective=Parts(adversaries=adversaries),
            perturbation=AdversarialWeights(0.01),
        )
        made.run()
    assert len(reduced) == 5 and len(passes) == 5 * accumulation
    assert called == ["all_reduce"] * (5 * accumulation if adversaries else 0)
    assert plain(model) is model.module and all(bool(values.abs().sum() > 0) for values in reduced)


def test_statistics_are_those_of_the_first_process(alone_in_a_group: None) -> None:
    model = net()
    before = state_of(model)
    broadcast_buffers(unequal_buffers(model))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_only_buffers_that_may_differ_are_sent() -> None:
    """Not the mean and deviation of the images, nor statistics over all processes."""
    model = nn.Sequential(
        Normalize((0.5,), (0.2,)), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.utils.spectral_norm(nn.Linear(4, 2))
    )
    names = {id(buffer): name for name, buffer in model.named_buffers()}
    sent = lambda: [names[id(buffer)] for buffer in unequal_buffers(model, (Normalize,))]  # noqa: E731
    assert sent() == ["2.running_mean", "2.running_var", "3.weight_u", "3.weight_v"]
    synchronise(model, torch.device("cpu"))
    assert sent() == ["3.weight_u", "3.weight_v"]


def test_processes_train_a_network_that_does_not_use_all_weights(alone_in_a_group: None) -> None:
    """The weights are those of one process without a group; what is idle gets no gradient."""
    alone, together = (Spare(net()) for _ in range(2))
    together.load_state_dict(alone.state_dict())
    assert has_idle_weights(together, IMAGES[:2]) and not has_idle_weights(together.network, IMAGES[:2])
    assert all(value.equal(alone.state_dict()[name]) for name, value in together.state_dict().items())
    run: Any = SimpleNamespace(
        desc=SimpleNamespace(training=SimpleNamespace(compile=False, accumulation=1)),
        environment=SimpleNamespace(world_size=2, device=torch.device("cpu")),
        batches=SimpleNamespace(batch_size=4),
        _first_images=lambda count: IMAGES[:count],
    )
    wrapped = Train._distributed(run, together)
    for model in (alone, wrapped):
        trainer(3, model=model).run()
    assert together.spare.weight.grad is None
    for name, value in together.state_dict().items():
        assert torch.allclose(value, alone.state_dict()[name], atol=1e-6), name
