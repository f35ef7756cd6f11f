"""The choice of a device for each process, and the check that no two processes share a GPU. Does not import torch."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foundations.errors import UsageError

VARIABLE = "NONISOTROPIC_DEVICE"  # what --device=auto is, if it is set


def choose_device(name: str, local_rank: int, local_world_size: int) -> str:
    """The name of this process's device, such as cpu or cuda:1, for a value of --device.

    Every process of a machine gets the GPU of its local rank, or the only one that it sees: some launchers show each
    process another one. `check_apart` finds out whether it is another one.
    """
    import torch

    source = "--device"
    if name == "auto" and os.environ.get(VARIABLE, "auto") not in ("", "auto"):
        name, source = os.environ[VARIABLE], VARIABLE
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"{source}: expected auto, cpu, cuda or cuda:<n>, got '{name}'") from None
    if device.type != "cuda" or not torch.cuda.is_available():
        raise UsageError(f"{source}={name}: no such device here; use --device=cpu")
    if device.index is not None and local_world_size > 1:
        raise UsageError(
            f"{source}={name}: {local_world_size} processes of this machine would share that GPU; use --device=cuda, "
            "which gives each process its own"
        )
    present = torch.cuda.device_count()
    index = (0 if present == 1 else local_rank) if device.index is None else device.index
    if index >= present:
        what = "start fewer processes" if device.index is None else f"expected a number below {present}"
        raise UsageError(f"{source}={name}: GPUs that this process sees: {present}; {what}, or use --device=cpu")
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def describe_device(device_name: str) -> str:
    """The kind of a device: cpu, or the name of a GPU."""
    import torch

    return torch.cuda.get_device_name(device_name) if device_name.startswith("cuda") else device_name


@dataclass(frozen=True)
class Place:
    """The place of a process: its machine, and the name and unique id of its GPU ("" for the CPU)."""

    host: str
    gpu: str
    gpu_id: str

    @classmethod
    def of(cls, device_name: str) -> Place:
        import torch

        if not device_name.startswith("cuda"):
            return cls(socket.gethostname(), "", "")
        found = torch.cuda.get_device_properties(device_name)
        return cls(socket.gethostname(), found.name, str(found.uuid))


def check_apart(store: Any, rank: int, world_size: int, device_name: str) -> None:
    """Raise UsageError, on all processes, unless each has a GPU of its own or all use the CPU.

    store   a key-value store that all processes can reach; they need no process group
    """
    store.set(f"place/{rank}", json.dumps(asdict(Place.of(device_name))))
    places = [Place(**json.loads(store.get(f"place/{other}"))) for other in range(world_size)]
    if found := mistake(places):
        raise UsageError(found)


def mistake(places: Sequence[Place]) -> str:
    """The message on places of processes (in rank order) that cannot work together; "" if they can."""
    on_gpu = [rank for rank, place in enumerate(places) if place.gpu]
    on_cpu = [rank for rank, place in enumerate(places) if not place.gpu]
    if on_gpu and on_cpu:
        return (
            f"--device: rank {on_gpu[0]} has a GPU and rank {on_cpu[0]} ({places[on_cpu[0]].host}) has none; start "
            "processes only where there is a GPU for each, or use --device=cpu"
        )
    first: dict[tuple[str, str], int] = {}
    for rank in on_gpu:
        place = places[rank]
        other = first.setdefault((place.host, place.gpu_id), rank)
        if other != rank:
            return (
                f"--device: ranks {other} and {rank} would share one GPU ({place.gpu} of {place.host}); start one "
                "process for each GPU, or use --device=cpu"
            )
    return ""
