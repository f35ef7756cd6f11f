"""Three processes that start again in the middle arrive at the bits of those that did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.network import distributed, settle_buckets

WORLD, STEPS, RESTART = 3, 4, 2


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 9, 3), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 11, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(11 * 16, 7))


class Trained:
    """A network in training by the processes of a group, from given weights on."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self.network = network()
        self.network.load_state_dict(weights)
        self.model = distributed(self.network, torch.device("cpu"))
        settle_buckets(self.model, torch.rand(4, 1, 8, 8))

    def step(self, number: int, rank: int) -> None:
        generator = torch.Generator().manual_seed(WORLD * number + rank)
        self.model(torch.rand(4, 1, 8, 8, generator=generator)).logsumexp(1).sum().backward()
        with torch.no_grad():
            for weight in self.network.parameters():
                weight -= 0.1 * weight.grad  # type: ignore[operator]
                weight.grad = None


def process(rank: int, folder: str) -> None:
    """Take all steps twice: at one go, and with a new DistributedDataParallel after some of them."""
    torch.set_num_threads(1)
    place = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=WORLD)
    straight = Trained(network().state_dict())
    for number in range(STEPS):
        if number == RESTART:
            kept = {name: value.clone() for name, value in straight.network.state_dict().items()}
        straight.step(number, rank)
    again = Trained(kept)
    for number in range(RESTART, STEPS):
        again.step(number, rank)
    torch.save([each.network.state_dict() for each in (straight, again)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_that_restart_add_gradients_in_the_same_order(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(process, (str(tmp_path),), nprocs=WORLD, start_method="fork")
    for rank in range(WORLD):
        straight, again = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in straight.items():
            assert torch.equal(value, again[name]) or "running" in name, (rank, name)


def test_settling_leaves_weights_and_buffers_as_they_are() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settle_buckets(model, torch.rand(4, 1, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
