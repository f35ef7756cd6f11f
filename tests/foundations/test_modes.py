"""Evaluation leaves a model as it was, and asks it for no gradients of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from foundations import modes
from foundations.modes import evaluation_mode, frozen
from foundations.step import Step
from testing.robust_accuracy import RobustnessWarning, robust_accuracy
from tests.training.sources import ANCHORS, IMAGES, Whole, net
from threat_specification import Linf, ProjectedDisplacement
from training.adversaries import PGD
from training.batch import Batch
from training.network import distributed, plain
from training.objectives import Parts

BATCH = Batch(Whole())


class _Product(torch.autograd.Function):
    """x W^T, which computes all gradients that its inputs require, as compiled models and extensions do."""

    asked = 0  # gradients of weights computed so far

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return gradient @ weight, None
        _Product.asked += 1
        return gradient @ weight, gradient.T @ x


class Eager(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return _Product.apply(input, self.weight) + self.bias


def eager() -> nn.Module:
    torch.manual_seed(0)
    _Product.asked = 0
    return nn.Sequential(nn.Flatten(), Eager(16, 8), nn.BatchNorm1d(8), nn.ReLU(), Eager(8, 3))


def test_weights_are_restored_also_after_an_error() -> None:
    """Those that required no gradient before require none afterwards; modes and gradients are the same too."""
    model = net()
    first, *others = model.parameters()
    first.requires_grad_(False)
    before = [id(weight) for weight in model.parameters()]
    model[2].eval()
    for block in (frozen, evaluation_mode):
        with pytest.raises(ZeroDivisionError), block(model):
            assert not any(weight.requires_grad for weight in model.parameters())
            raise ZeroDivisionError
        assert not first.requires_grad and all(weight.requires_grad for weight in others)
    assert [id(weight) for weight in model.parameters()] == before
    assert model.training and not model[2].training and all(weight.grad is None for weight in others)


def test_attacks_ask_for_no_gradient_of_a_weight() -> None:
    model = eager()
    labels = model.eval()(IMAGES).argmax(1)
    attacks = ["momentum_ce", "apgd_ce", "minimal_gauge"]
    with pytest.warns(RobustnessWarning):  # so the probes of the model's gradients have been run too
        found = robust_accuracy(model, IMAGES, labels, Linf(), 0.001, attacks=attacks, steps=2)
    assert found == 1.0 and _Product.asked == 0
    model(IMAGES).sum().backward()
    assert _Product.asked == 2


def test_a_compiled_model_computes_the_gradient_of_the_images_alone() -> None:
    """The graph of its backward pass has one result in evaluation, and one for each weight in training."""
    results: list[int] = []

    def backward(graph: Any, inputs: Any) -> Any:
        (outputs,) = next(node for node in graph.graph.nodes if node.op == "output").args
        results.append(sum(output is not None for output in outputs))
        return make_boxed_func(graph.forward)

    compiled = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=backward)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    model.compile(backend=compiled)
    inputs = IMAGES.clone().requires_grad_(True)
    with evaluation_mode(model):
        torch.autograd.grad(model(inputs).sum(), inputs)
    model(IMAGES).sum().backward()
    assert results == [1, 4]


def adversary(threat: Any, threshold: float) -> PGD:
    return PGD("adv", threat, threshold, 0.1, 0.1, 2, 0)


def trained(model: nn.Module) -> list[Tensor]:
    """Weights and buffers after three steps on adversaries; attacks call the network inside DistributedDataParallel."""
    threat = ProjectedDisplacement(anchors=ANCHORS)
    objective = Parts(adversaries=[adversary(Linf(), 0.1), adversary(threat, 0.1)])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    for number in range(3):
        optimizer.zero_grad()
        parts = objective.make(plain(model), BATCH, Step(number, 0))
        objective.score(model, parts).loss.backward()
        optimizer.step()
    return [value.clone() for value in plain(model).state_dict().values()]


@contextmanager
def alone_in_a_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def in_parallel(model: nn.Module) -> nn.Module:
    return distributed(model, torch.device("cpu"))


@pytest.mark.parametrize(("group", "wrapped"), [(nullcontext, lambda model: model), (alone_in_a_group, in_parallel)])
def test_training_with_adversaries_gives_the_same_bits(
    group: Callable[[], Any], wrapped: Callable[[nn.Module], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without frozen weights; the only gradients of weights are those of the three optimizer steps."""
    with group():
        found = trained(wrapped(eager()))
        assert _Product.asked == 3 * 2
        monkeypatch.setattr(modes, "frozen", lambda model: nullcontext())
        expected = trained(wrapped(eager()))
        assert _Product.asked == 3 * 2 * (1 + 2 * 2)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
