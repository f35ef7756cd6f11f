"""The states of the global random generators of all processes, as plain values and tensors.

Training's own random numbers depend on (seed, step, data set index) alone and need none of this; dropout and what
others write does.
"""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch

from foundations.environment import Environment


def seed_everything(seed: int) -> None:
    """Start the generators of Python, NumPy and torch; the same on every process."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def gather_states(environment: Environment) -> dict[str, Any]:
    """The states of Python and NumPy of this process, and [W, n] those of torch on each process. A collective."""
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
    """Put them back. A process beyond those that were there takes the state of one of them."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, *rest = states["numpy"]
    numpy.random.set_state((kind, numbers.numpy().astype(numpy.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(_own(states["torch"], environment))
    if states["cuda"] is not None and environment.device.type == "cuda":
        torch.cuda.set_rng_state(_own(states["cuda"], environment), environment.device)


def _gathered(state: torch.Tensor, environment: Environment) -> torch.Tensor:
    """[n] bytes of each process as [W, n]."""
    return torch.from_numpy(environment.all_gather(state.cpu().numpy().astype(numpy.int64))).byte()


def _own(states: torch.Tensor, environment: Environment) -> torch.Tensor:
    # A copy: torch reads a state from the start of its storage, and crashes on a row further on.
    return states[environment.rank % len(states)].cpu().clone()
