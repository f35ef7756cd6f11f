"""The device of each process, on machines whose GPUs are made up."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from foundations.devices import Place, check_apart, mistake
from foundations.environment import Environment, make_environment
from foundations.errors import UsageError

Gpus = Callable[[int], None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """A function that lets torch see so many GPUs."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NONISOTROPIC_DEVICE"):
        monkeypatch.delenv(name, raising=False)

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)

    return see


def device(name: str, monkeypatch: pytest.MonkeyPatch, **variables: object) -> str:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, str(value))
    return make_environment("", "", name, False, 0).device_name


SECOND = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}
SECOND_NODE = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}


@pytest.mark.parametrize(
    ("seen", "name", "variables", "expected"),
    [
        (0, "auto", {}, "cpu"),
        (4, "auto", {}, "cuda:0"),
        (4, "cpu", SECOND, "cpu"),
        (4, "auto", {"NONISOTROPIC_DEVICE": "cpu"}, "cpu"),
        (4, "auto", {"NONISOTROPIC_DEVICE": "auto"}, "cuda:0"),
        (4, "cuda", {"NONISOTROPIC_DEVICE": "cpu"}, "cuda:0"),
        (4, "cuda:1", {}, "cuda:1"),
        (4, "auto", SECOND, "cuda:1"),
        (2, "cuda", SECOND, "cuda:1"),
        (1, "cuda", SECOND, "cuda:0"),  # the launcher shows each process a GPU of its own
        (4, "cuda:3", SECOND_NODE, "cuda:3"),  # one process on each machine
        (4, "cuda:3", {"RANK": 1, "WORLD_SIZE": 2}, "cuda:3"),
    ],
)
def test_each_process_gets_its_gpu(
    seen: int, name: str, variables: dict[str, object], expected: str, gpus: Gpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(seen)
    assert device(name, monkeypatch, **variables) == expected


@pytest.mark.parametrize(
    ("seen", "name", "variables", "told"),
    [
        (0, "cuda", {}, "--device=cuda: no such device here; use --device=cpu"),
        (4, "cuda:9", {}, "GPUs that this process sees: 4; expected a number below 4"),
        (2, "cuda", SECOND | {"LOCAL_RANK": 2, "LOCAL_WORLD_SIZE": 3, "WORLD_SIZE": 3}, "sees: 2; start fewer proc"),
        (4, "cuda:1", SECOND, "--device=cuda:1: 2 processes of this machine would share that GPU; use --device=cuda"),
        (4, "cuda:0", SECOND | {"RANK": 0, "LOCAL_RANK": 0}, "2 processes of this machine would share that GPU"),
    ],
)
def test_a_device_that_a_process_cannot_have_is_refused(
    seen: int, name: str, variables: dict[str, int], told: str, gpus: Gpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(seen)
    with pytest.raises(UsageError) as refused:
        device(name, monkeypatch, **variables)
    assert told in str(refused.value)


A, B = Place("a", "H100", "GPU-1"), Place("a", "H100", "GPU-2")
ELSEWHERE, CPU = Place("b", "H100", "GPU-1"), Place("b", "", "")


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([A, B], ""),
        ([A, B, ELSEWHERE], ""),
        ([CPU, CPU, CPU], ""),
        ([A, B, A], "ranks 0 and 2 would share one GPU (H100 of a); start one process for each GPU"),
        ([CPU, A, CPU], "rank 1 has a GPU and rank 0 (b) has none"),
    ],
)
def test_processes_that_share_a_gpu_are_refused(places: list[Place], expected: str) -> None:
    assert mistake(places).startswith(f"--device: {expected}") if expected else mistake(places) == ""


def test_all_processes_learn_of_the_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that see one GPU each, by the same id."""
    found = SimpleNamespace(name="H100", uuid="GPU-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    store, told = distributed.HashStore(), []

    def process(rank: int) -> None:
        with pytest.raises(UsageError) as refused:
            check_apart(store, rank, 2, "cuda:0")
        told.append(str(refused.value))

    threads = [threading.Thread(target=process, args=[rank]) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(told) == 2 and all("ranks 0 and 1 would share one GPU (H100 of" in text for text in told)


class Joined(Exception):
    """Raised in place of joining a process group."""


@pytest.mark.parametrize(
    ("name", "backend", "bound"), [("cpu", "gloo", None), ("cuda:1", "cpu:gloo,cuda:nccl", torch.device("cuda:1"))]
)
def test_a_group_exchanges_tensors_of_the_cpu_and_of_its_gpu(
    name: str, backend: str, bound: torch.device | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked = distributed.HashStore(), {}
    store.set("place/1", json.dumps({"host": "b", "gpu": "H100" if bound else "", "gpu_id": "GPU-2"}))

    def join(backend: str, **options: Any) -> None:
        asked.update(options, backend=backend)
        raise Joined

    found = SimpleNamespace(name="H100", uuid="GPU-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(distributed, "rendezvous", lambda where: iter([(store, 0, 2)]))
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    monkeypatch.setattr(distributed, "init_process_group", join)
    environment = Environment(root_dir=Path("/nowhere"), device_name=name, world_size=2)
    with pytest.raises(Joined), environment.process_group():
        pass
    assert asked["backend"] == backend and asked["device_id"] == bound
    assert asked["timeout"] > timedelta(hours=1)
    store.set("place/1", store.get("place/0").decode() if bound else json.dumps(asdict(A)))
    told = "would share one GPU" if bound else "has a GPU and rank 0"
    with pytest.raises(UsageError, match=told), environment.process_group():
        pass
