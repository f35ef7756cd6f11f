"""Members of AutoAttack (Croce and Hein 2020, arXiv 2003.01690) as attacks.

They are run by the library `pyautoattack`, which is installed with RobustBench.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from foundations.desc import derive_seed
from foundations.errors import UsageError
from threat_specification.attacks.base import Attack, AttackResult, Task, input_gradient

GRADIENT_FREE = "square"
NORMS = ("Linf", "L2")  # norms of the balls that the library supports
STANDARD = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", GRADIENT_FREE)  # all names of members


def members_for(attack_type: str, num_classes: int) -> list[str]:
    """Names of the members for an attack type: `auto` (the standard version, in its order) or `apgd` (cross-entropy).

    Targeted DLR needs at least 4 classes. With 3 classes untargeted DLR replaces it; with 2 neither is run.
    """
    if attack_type == "apgd":
        return ["apgd-ce"]
    targeted = {2: [], 3: ["apgd-dlr"]}.get(num_classes, ["apgd-t"])
    return ["apgd-ce", *targeted, "fab-t", GRADIENT_FREE]


def autoattack(norm: str, power: float, names: list[str], num_classes: int) -> dict[str, Attack]:
    """Attacks by name, in the ball of radius `power` in a norm; raises UsageError for an unsupported norm."""
    if norm not in NORMS:
        raise UsageError(f"--adv_test_attack_type: AutoAttack knows {' and '.join(NORMS)}, got {norm}; use pgd")
    return {name: partial(_run_member, name, norm, power, num_classes) for name in names}


def _run_member(name: str, norm: str, power: float, num_classes: int, task: Task) -> AttackResult:
    """Run one member on a task.

    The seed depends only on (seed, first index, member); the state of the global random number generators is restored.
    The search is in the library's own ball of radius `power`; the set of the task is not used. The caller checks the
    points found.
    """
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
    """The warnings of the library's own checks of a model on a few images, one string each."""
    from pyautoattack import checks

    inputs = images.clone().requires_grad_(True)
    with torch.enable_grad():
        gradient = input_gradient(functional.cross_entropy(model(inputs), labels, reduction="sum"), inputs)
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # else its counts include earlier calls in this process
    with _findings() as logger:
        checks.check_randomized(model, images, labels, logger=logger)
        checks.check_range_output(model, images, logger=logger)
        checks.check_zero_gradients(gradient, logger=logger)
        checks.check_dynamic(model, images, logger=logger)
    return [f"AutoAttack: {' '.join(message.split())}" for message in logger.messages]


class _Messages(logging.Handler):
    """A log handler that keeps all warnings; also usable in place of a logger of which only `warning` is called."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.warning(record.getMessage())

    def warning(self, message: str) -> None:
        self.messages.append(message.partition(" See flags_doc")[0])


@contextmanager
def _findings() -> Iterator[_Messages]:
    """Collect the warnings of the library's logger for the duration of a block, instead of printing them.

    Afterwards restore the trace function of a debugger or a coverage tool, which the library removes.
    """
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
