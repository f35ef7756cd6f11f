"""Members of AutoAttack (Croce and Hein 2020, arXiv 2003.01690) as attacks, by the library that RobustBench brings."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from foundations.desc import derive_seed
from foundations.errors import UsageError
from threat_specification.attacks.base import Attack, AttackResult, Task, input_gradient
from threat_specification.attacks.losses import LOSSES

GRADIENT_FREE = "square"
NORMS = ("Linf", "L2")  # of the balls that the library knows
STANDARD = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", GRADIENT_FREE)  # names that members can have


def members_for(attack_type: str, num_classes: int) -> list[str]:
    """The members that a number of classes allows, of `auto` (the standard version, in its order) or `apgd`
    (cross-entropy alone). Targeted DLR needs 4 classes; untargeted DLR takes its place with 3."""
    if attack_type == "apgd":
        return ["apgd-ce"]
    targeted = {2: [], 3: ["apgd-dlr"]}.get(num_classes, ["apgd-t"])
    return ["apgd-ce", *targeted, "fab-t", GRADIENT_FREE]


def autoattack(norm: str, power: float, names: list[str], num_classes: int) -> dict[str, Attack]:
    """Name -> attack in the ball of a norm and a radius."""
    if norm not in NORMS:
        raise UsageError(f"--adv_test_attack_type: AutoAttack knows {' and '.join(NORMS)}, got {norm}; use pgd")
    return {name: partial(_run_member, name, norm, power, num_classes) for name in names}


def _run_member(name: str, norm: str, power: float, num_classes: int, task: Task) -> AttackResult:
    """Seeded by (seed, first index, member), whatever ran before; the global generators are left alone. The ball is the
    library's own, of `power`; the set of the task is where its points are checked."""
    from pyautoattack import AutoAttack

    images, robust, device = task.examples, task.robust, task.examples.device
    number = derive_seed(task.seed, int(task.index[0]), name) % 2**31
    adversary = AutoAttack(task.model, norm=norm, eps=power, seed=number, version="standard", device=device)
    adversary.attacks_to_run = [name]
    adversary.verbose = False
    # The library assumes at least 10 classes.
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = min(9, num_classes - 1)
    perturbed = images.clone()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _findings() as _:
        found, _ = adversary.run_standard_evaluation(images[robust], task.labels[robust], batch_size=len(images))
    perturbed[robust] = found.clamp(0, 1)
    memory = task.best_so_far()
    memory.ask(perturbed - images)
    return memory.result


def findings(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> list[str]:
    """The findings of the library's own checks of a model on a few images, a sentence each."""
    from pyautoattack import checks

    inputs = images.clone().requires_grad_(True)
    with torch.enable_grad():
        gradient = input_gradient(LOSSES["ce"](model(inputs), labels, None).sum(), inputs)
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # counts since the program began otherwise
    with _findings() as logger:
        checks.check_randomized(model, images, labels, logger=logger)
        checks.check_range_output(model, images, logger=logger)
        checks.check_zero_gradients(gradient, logger=logger)
        checks.check_dynamic(model, images, logger=logger)
    return [f"AutoAttack: {' '.join(message.split())}" for message in logger.messages]


class _Messages(logging.Handler):
    """Keeps what is logged; stands in for a logger where only `warning` is called."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.warning(record.getMessage())

    def warning(self, message: str) -> None:
        self.messages.append(message.partition(" See flags_doc")[0])


@contextmanager
def _findings() -> Iterator[_Messages]:
    """The library's logger tells us instead of the terminal; a debugger or a coverage tool keeps its trace, which the
    library would end."""
    logger, trace, messages = logging.getLogger("auto-attack"), sys.gettrace(), _Messages()
    propagate, level = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logger.addHandler(messages)
    try:
        yield messages
    finally:
        logger.removeHandler(messages)
        logger.propagate = propagate
        logger.setLevel(level)
        sys.settrace(trace)
