"""States of the global random number generators of all processes, as plain values and tensors.

The random numbers of this project's own training code depend only on (seed, step, data set index) and do not need
them. Dropout and third-party code do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from foundations.environment import Environment


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed the generators of Python and NumPy, and that of torch by process: dropout draws other masks in each part."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed((seed + rank) % 2**63)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """A block after which the generators of Python, NumPy and torch are as before."""
    python, legacy = random.getstate(), numpy.random.get_state(legacy=True)  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(legacy)  # noqa: NPY002


def gather_states(environment: Environment) -> dict[str, Any]:
    """The generator states: of Python and NumPy on this process, of torch [W, n] on all W processes.

    A collective operation.
    """
    kind, keys, *rest = numpy.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(numpy.asarray(keys, numpy.int64)), *rest],
        "torch": _gathered(torch.get_rng_state(), environment),
        "cuda": _gathered(torch.cuda.get_rng_state(environment.device), environment)
        if environment.device.type == "cuda"
        else None,
    }


def restore_states(states: dict[str, Any], environment: Environment) -> None:
    """Restore the states from `gather_states`. With more processes than then, rank r takes torch's state of r % W."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, *rest = states["numpy"]
    numpy.random.set_state((kind, numbers.numpy().astype(numpy.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(_own(states["torch"], environment))
    if states["cuda"] is not None and environment.device.type == "cuda":
        torch.cuda.set_rng_state(_own(states["cuda"], environment), environment.device)


def _gathered(state: torch.Tensor, environment: Environment) -> torch.Tensor:
    """Gather a state of [n] bytes from each of W processes, as [W, n]."""
    return torch.from_numpy(environment.all_gather(state.cpu().numpy().astype(numpy.int64))).byte()


def _own(states: torch.Tensor, environment: Environment) -> torch.Tensor:
    # A copy, since torch reads a state from the start of the tensor's storage, and crashes on a view of a later row.
    return states[environment.rank % len(states)].cpu().clone()
