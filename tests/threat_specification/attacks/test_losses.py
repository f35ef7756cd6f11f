"""Losses of attacks: their values, and their gradients at the limits of floating point."""

from __future__ import annotations

import pytest
import torch

from foundations.errors import UsageError
from threat_specification.attacks.base import input_gradient
from threat_specification.attacks.losses import LOSSES


def test_losses() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [1.0, 4.0, 0.0, 2.0]])
    labels, targets = torch.tensor([0, 3]), torch.tensor([1, 0])
    assert LOSSES["margin"](logits, labels, None).tolist() == [-1.0, 2.0]
    assert LOSSES["dlr"](logits, labels, None).tolist() == pytest.approx([-1 / 2, 2 / 3])
    assert LOSSES["dlr_targeted"](logits, labels, targets).tolist() == pytest.approx([-2 / 2.5, -1 / 3.5])
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert LOSSES["ce"](logits, labels, None).exp().log1p().tolist() == pytest.approx(expected.tolist())
    p = logits.softmax(1).tolist()
    margins = [p[0][2] - p[0][0], p[1][1] - p[1][3]]
    assert LOSSES["probability_margin"](logits, labels, None).expm1().tolist() == pytest.approx(margins)
    for name, classes in (("dlr", 2), ("dlr_targeted", 3)):
        with pytest.raises(UsageError, match=f"needs at least {classes + 1} classes, got {classes}"):
            LOSSES[name](logits[:, :classes], torch.tensor([0, 1]), targets)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_cross_entropy_leads_steeply_where_probabilities_round_to_1(scale: float) -> None:
    """Its gradient was 0 there, so that attacks by it left a confident network as it was."""
    logits = (scale * torch.tensor([[3.0, 1.0, 2.0, 0.0]])).requires_grad_(True)
    gradient = input_gradient(LOSSES["ce"](logits, torch.tensor([0]), None).sum(), logits).squeeze(0)
    others = (logits[0, 1:].double() - logits[0].double().max()).softmax(0)
    assert gradient.tolist() == pytest.approx([-1.0, *others.tolist()])


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_margin_of_probabilities_leads_steeply_where_they_round_to_1(scale: float) -> None:
    """Its gradient was 0 there too. Independent: derivatives of log(1 - p_label + p_next) in float64, by hand."""
    logits = (scale * torch.tensor([[0.03, 0.01, 0.02, 0.0]])).requires_grad_(True)
    gradient = input_gradient(LOSSES["probability_margin"](logits, torch.tensor([0]), None).sum(), logits).squeeze(0)
    p = logits[0].detach().double().softmax(0)
    slope = [p[0] * (float(k == 0) - p[k]) for k in range(4)], [p[2] * (float(k == 2) - p[k]) for k in range(4)]
    expected = [float((next_one - label) / (1 - p[0] + p[2])) for label, next_one in zip(*slope, strict=True)]
    assert gradient.tolist() == pytest.approx(expected, rel=1e-4)
    confident = (1000 * logits.detach()).requires_grad_(True)
    steep = input_gradient(LOSSES["probability_margin"](confident, torch.tensor([0]), None).sum(), confident)
    assert steep.squeeze(0)[[0, 2]].tolist() == pytest.approx([-1.0, 1.0], rel=1e-3)


@pytest.mark.parametrize(("name", "live"), [("dlr", 2), ("dlr", 3), ("dlr_targeted", 2), ("dlr_targeted", 4)])
def test_classes_that_are_ruled_out_leave_ratios_a_gradient(name: str, live: int) -> None:
    """With fewer logits than its divisor takes, the loss was 0 wherever the others were minus infinity."""
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])
    logits[:, live:] = -torch.inf
    logits.requires_grad_(True)
    loss = LOSSES[name](logits, torch.tensor([0]), torch.tensor([1]))
    gradient = input_gradient(loss.sum(), logits).squeeze(0)
    assert bool(loss.isfinite()) and float(gradient[0]) < 0 < float(gradient[1])
