"""Answers and gradients of the first process, on every process."""

import pytest
import torch
from torch import Tensor, distributed, nn

from testing.lockstep import InLockstep


def test_values_and_gradients_are_what_the_first_process_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that receives: its own numbers count nowhere, and the weights get no gradient from it."""
    sent = iter([torch.full((2, 3), 5.0), torch.full((2, 1, 2, 2), 7.0)])
    monkeypatch.setattr(distributed, "broadcast", lambda value, src: value.copy_(next(sent)))
    model = InLockstep(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    images = torch.rand(2, 1, 2, 2, requires_grad=True)
    answers = model(images)
    assert bool((answers == 5).all())
    (gradient,) = torch.autograd.grad(answers.sum(), images)
    assert bool((gradient == 7).all())


def test_a_first_process_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Tensor] = []
    monkeypatch.setattr(distributed, "broadcast", lambda value, src: received.append(value))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images = torch.rand(2, 1, 2, 2, requires_grad=True)
    expected = torch.autograd.grad(model(images).sum(), images)[0]
    answers = InLockstep(model)(images)
    assert torch.equal(answers, model(images))
    assert torch.equal(torch.autograd.grad(answers.sum(), images)[0], expected)
    assert len(received) == 2
