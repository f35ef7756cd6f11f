"""Times of work that a device does later than it is asked to."""

from __future__ import annotations

import time

import pytest
import torch

from foundations.clock import now, timed
from testing.perturbed import Perturbation, PerturbationEvaluation
from testing.shards import Shard

GPU = torch.device("cuda:0")


class Elsewhere(torch.Tensor):
    """A tensor that reports a GPU, while its memory is the CPU's."""

    device = GPU


class Queue:
    """A device that works off what it was given only when someone waits for it."""

    def __init__(self) -> None:
        self.left = 0.0

    def synchronize(self, device: torch.device) -> None:
        time.sleep(self.left)
        self.left = 0.0

    def change(self, shard: Shard) -> tuple[torch.Tensor, None]:
        self.left += 0.05
        return shard.images, None

    def evaluate(self, images: torch.Tensor, labels: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(labels))


def test_a_change_is_charged_with_the_time_that_the_device_takes_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, seconds = Queue(), {"a": 1.0}
    monkeypatch.setattr(torch.cuda, "synchronize", queue.synchronize)
    perturbation = Perturbation("later", 1.0, "safe", "", "", queue.change)
    evaluation = PerturbationEvaluation([perturbation], {"none": queue})
    images = torch.rand(2, 1, 2, 2).as_subclass(Elsewhere)
    evaluation(Shard(0, images, torch.zeros(2), torch.arange(2)))
    assert evaluation.seconds["perturbations"] > 0.05 > evaluation.seconds["none"]
    with timed(seconds, "a", GPU):
        queue.left = 0.05
    assert seconds["a"] > 1.05
    queue.left = 10
    assert now(torch.device("cpu")) < now(torch.device("cpu"))  # a CPU has nothing to wait for
