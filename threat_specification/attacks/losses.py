"""Losses that attacks maximise: functions of (logits [B,K], labels [B], targets [B] or None) to [B]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foundations.errors import UsageError

Loss = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Log-odds against the label, log((1 - p) / p) of its probability p, which rises as cross-entropy does.

    -log p = log(1 + exp(log-odds)): the steepest direction is the same. But where p rounds to 1, as for large logits,
    the gradient of -log p is 0, and an attack would stand still.
    """
    label = labels.view(-1, 1)
    return logits.scatter(1, label, -torch.inf).logsumexp(1) - logits.gather(1, label).squeeze(1)


def margin(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Largest other logit minus the label's logit; above 0 exactly if the model is wrong (except for ties)."""
    label = labels.view(-1, 1)
    others = logits.scatter(1, label, -torch.inf).amax(1)
    return others - logits.gather(1, label).squeeze(1)


def margin_targeted(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Logit of the target minus the label's logit; above 0 only if the model is wrong."""
    return (logits.gather(1, _given(targets).view(-1, 1)) - logits.gather(1, labels.view(-1, 1))).squeeze(1)


def probability_margin(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """log(1 + m) of the largest other probability minus the label's, m (PMA, Xie et al. 2024, arXiv 2411.15210).

    It rises as m does, so that the steepest direction is the same; above 0 exactly if the model is wrong. 1 + m is the
    sum of the other probabilities and the largest of them. Where the label's rounds to 1, the gradient of m is 0.
    """
    others = logits.scatter(1, labels.view(-1, 1), -torch.inf)
    return torch.cat([others, others.amax(1, keepdim=True)], 1).logsumexp(1) - logits.logsumexp(1)


def dlr(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, arXiv 2003.01690, eq. 6); invariant to the logits' scale."""
    _check_classes(logits, 3, "dlr")
    ordered = logits.sort(1, descending=True).values
    return margin(logits, labels, None) / _scale(ordered[:, 0] - ordered[:, 2])


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Difference of logits ratio towards a target class (eq. 7 of the same paper)."""
    _check_classes(logits, 4, "dlr_targeted")
    ordered = logits.sort(1, descending=True).values
    return margin_targeted(logits, labels, targets) / _scale(ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "margin_targeted": margin_targeted,
    "probability_margin": probability_margin,
    "dlr": dlr,
    "dlr_targeted": dlr_targeted,
}


def _scale(difference: Tensor) -> Tensor:
    """The divisor of a ratio; 1 where a logit is minus infinity, as of a class that is ruled out."""
    return torch.where(difference.isfinite(), difference + 1e-12, 1.0)


def _given(targets: Tensor | None) -> Tensor:
    if targets is None:
        raise UsageError("a targeted loss needs a target class for each example, got none")
    return targets


def _check_classes(logits: Tensor, least: int, name: str) -> None:
    if logits.shape[1] < least:
        raise UsageError(f"the loss {name} needs at least {least} classes, got {logits.shape[1]}; use margin or ce")
