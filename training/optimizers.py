"""Optimizers by name. Torch-free until one is made.

To add one: a function here, and its entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def sgd(
    weights: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, momentum: float, nesterov: bool
) -> torch.optim.Optimizer:
    """Stochastic gradient descent; the decay is a part of the gradient."""
    from torch.optim import SGD

    return SGD(weights, lr, momentum, weight_decay=weight_decay, nesterov=nesterov)


def adamw(weights: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, **_: Any) -> torch.optim.Optimizer:
    """Adam with decoupled decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""
    from torch.optim import AdamW

    return AdamW(weights, lr, weight_decay=weight_decay)


# Name -> function of the weights, and of the options by name; what it does not know it ignores.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": sgd, "adamw": adamw}
