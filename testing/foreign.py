"""Attacks of other libraries as members of the ensemble: one function each, whose points are projected into the set.

The function is f(model, images, labels, allowed) -> perturbed images [B,C,H,W]. `allowed` is the set of allowed
perturbations (`AttackSet`): it has `project`, `holds`, `lower`, `upper` and `threshold`, for attacks that stay in it
by themselves. Others may return any finite points. benchmarks/foreign_attacks.py has examples.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from foundations.desc import derive_seed
from foundations.errors import NonisotropicError, RunError, UsageError, look_up
from foundations.memory import is_out_of_memory
from foundations.modes import frozen
from threat_specification.attacks.base import Attack, AttackResult, AttackSet, Classifier, Task
from threat_specification.attacks.registry import attacks_named

Function = Callable[[nn.Module, Tensor, Tensor, AttackSet], Tensor]
SEPARATOR = "@"  # between the names of functions and their file


class Counted(nn.Module):
    """A model that counts the images it was asked about, and those among them that a gradient may be asked for."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that modes and weights of the model are not this module's
        self.images = self.with_gradient = 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        self.with_gradient += len(images) if torch.is_grad_enabled() and images.requires_grad else 0
        return self._model[0](images)


@dataclass(frozen=True)
class Foreign:
    """A function as an attack: it gets all images of a batch, and one point for each counts, projected into the set.

    Passes are those of the whole call, the same for each image. Random numbers depend on (seed, first index, name);
    the state of the global generators is restored.
    """

    name: str
    function: Function

    def __call__(self, task: Task) -> AttackResult:
        images, counted = task.examples, Counted(task.model)
        shared = _shared(task)
        before = [each._version for each in shared]  # counts changes in place
        with _undisturbed(task, self.name):
            points = self._called(counted, images.detach().clone(), task)
        if [each._version for each in shared] != before:
            raise UsageError(
                f"attack {self.name}: expected a function that leaves the set and the model as they are, but it "
                "changed them in place; let it change copies"
            )
        self._check(points, images)
        memory = task.best_so_far()
        memory.ask(task.allowed.project(points.detach().to(images) - images))
        forwards, backwards = (
            -(-n // len(images)) * task.robust.long() for n in (counted.images, counted.with_gradient)
        )
        found = memory.result
        return AttackResult(
            found.success, found.delta, found.loss, found.forwards + forwards, found.backwards + backwards
        )

    def _called(self, model: nn.Module, images: Tensor, task: Task) -> Any:
        try:
            return self.function(model, images, task.labels.clone(), task.allowed)
        except Exception as error:  # whatever somebody's function does; but a lack of memory is met by smaller parts
            if isinstance(error, NonisotropicError) or is_out_of_memory(error):
                raise
            raise RunError(f"attack {self.name}: its function failed: {type(error).__name__}: {error}") from error

    def _check(self, points: Any, images: Tensor) -> None:
        expected = f"attack {self.name}: expected a tensor of finite perturbed images {list(images.shape)}, got "
        if not isinstance(points, Tensor):
            raise UsageError(expected + type(points).__name__)
        if points.shape != images.shape:
            raise UsageError(f"{expected}{list(points.shape)}")
        if not points.is_floating_point():
            raise UsageError(f"{expected}{points.dtype}; of bytes, give them divided by 255")
        if not bool(points.isfinite().all()):
            raise UsageError(f"{expected}NaN or infinity")


def chosen_attacks(attacks: Sequence[str | Function], num_classes: int) -> dict[str, Attack]:
    """The attacks of these names, and functions by theirs, in this order; without any the ensemble.

    Raises UsageError for unknown names, and for two attacks of one name.
    """
    if not attacks:
        return attacks_named([], num_classes)
    found: dict[str, Attack] = {}
    for attack in attacks:
        one = attacks_named([attack], num_classes) if isinstance(attack, str) else foreign([attack])
        found = together(found, one)
    return found


def foreign(functions: Sequence[Function]) -> dict[str, Attack]:
    """Functions as attacks, by their names; raises UsageError for two of one name."""
    found: dict[str, Attack] = {}
    for function in functions:
        found = together(found, {_name(function): Foreign(_name(function), function)})
    return found


def together(first: Mapping[str, Attack], second: Mapping[str, Attack]) -> dict[str, Attack]:
    """All of both; raises UsageError where different attacks have one name: one would take the other's place."""
    for name in second:
        if name in first and first[name] is not second[name]:
            raise UsageError(f"attacks: expected different names, got {name} twice; give a function another name")
    return {**first, **second}


def own(attacks: Mapping[str, Attack]) -> dict[str, Attack]:
    """The attacks among some that are not foreign."""
    return {name: attack for name, attack in attacks.items() if not isinstance(attack, Foreign)}


def read_foreign(value: str) -> dict[str, Attack]:
    """The attacks of a flag NAME,NAME@FILE.py; {} for an empty one.

    Raises UsageError if the file cannot be run or has no such function.
    """
    if not value:
        return {}
    names, _, path = value.partition(SEPARATOR)
    module = _imported(path)
    functions = {name: made for name, made in vars(module).items() if callable(made)}
    return foreign([look_up(functions, name.strip(), f"function of {path}") for name in names.split(",")])


def _name(attack: str | Function) -> str:
    return attack if isinstance(attack, str) else getattr(attack, "__name__", type(attack).__name__)


def _imported(path: str) -> ModuleType:
    name = "foreign_attacks_of_the_user"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--foreign_attacks: expected NAME,NAME@FILE.py, a file of Python, got {path}")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where its own classes look for it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's file does
        raise UsageError(f"--foreign_attacks: cannot run {path}: {type(error).__name__}: {error}") from error
    return module


def _shared(task: Task) -> list[Tensor]:
    """The tensors that a function gets without a copy, and could change for all attacks after it."""
    allowed, model = task.allowed, task.model
    weights = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return [allowed.bound.examples, allowed.lower, allowed.upper, *weights]


@contextmanager
def _undisturbed(task: Task, name: str) -> Iterator[None]:
    """A block with seeded global generators, gradients for the images alone, and the same state of all afterwards."""
    seed, device = derive_seed(task.seed, int(task.index[0]), name) % 2**31, task.labels.device
    # The global generator of NumPy, since that is what such attacks use.
    before = numpy.random.get_state(), random.getstate()  # noqa: NPY002
    weights = frozen(task.model) if isinstance(task.model, nn.Module) else nullcontext()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad(), weights:
        torch.manual_seed(seed)
        numpy.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            numpy.random.set_state(before[0])  # noqa: NPY002
            random.setstate(before[1])
