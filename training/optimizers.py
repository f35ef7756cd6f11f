"""Optimizers by name. Imports torch only when an optimizer is made.

To add an optimizer, write a function here and add it to OPTIMIZERS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def sgd(
    weights: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, momentum: float, nesterov: bool
) -> torch.optim.Optimizer:
    """Stochastic gradient descent; the weight decay is added to the gradient."""
    from torch.optim import SGD

    return SGD(weights, lr, momentum, weight_decay=weight_decay, nesterov=nesterov)


def adam(weights: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, **_: Any) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980); the decay is a part of the gradient."""
    from torch.optim import Adam

    return Adam(weights, lr, weight_decay=weight_decay)


def adamw(weights: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, **_: Any) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""
    from torch.optim import AdamW

    return AdamW(weights, lr, weight_decay=weight_decay)


# Name -> function of the weights and of all options as keyword arguments; it ignores options that it does not use.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": sgd, "adam": adam, "adamw": adamw}
