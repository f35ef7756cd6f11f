"""Batches that do not fit into memory: smaller parts from then on, or an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foundations.errors import RunError
from tests.training.trainers import smooth, trainer
from training.weight_perturbation import AdversarialWeights


class SmallDevice(nn.Module):
    """Has memory for a few images at a time."""

    def __init__(self, network: nn.Module, room: int) -> None:
        super().__init__()
        self.network, self.room, self.refused = network, room, 0
        self.error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.room:
            self.refused += 1
            raise self.error
        return self.network(images)


def test_out_of_memory_the_batch_is_taken_in_parts_from_then_on() -> None:
    told: list[str] = []
    large, small = smooth(), SmallDevice(smooth(), room=1)
    straight, tight = trainer(5, model=large), trainer(5, model=small, notice=told.append)
    straight.run()
    tight.run()
    assert small.refused == 1 and tight.accumulation == 2
    assert told == ["out of memory; use --accumulation=2 or a smaller --batch_size: going on with parts of 1 images"]
    for name, value in large.state_dict().items():
        assert torch.allclose(value, small.network.state_dict()[name], atol=1e-6), name
    assert torch.allclose(straight.totals.sums["loss"], tight.totals.sums["loss"], atol=1e-5)
    assert straight.totals.seen == tight.totals.seen


def test_out_of_memory_with_one_image_or_among_processes_is_an_error() -> None:
    with pytest.raises(RunError, match="out of memory; use --accumulation=4 or a smaller --batch_size"):
        trainer(1, model=SmallDevice(smooth(), room=0), notice=lambda text: None).run()
    with pytest.raises(RunError, match="out of memory; use --accumulation=2"):
        trainer(1, model=SmallDevice(smooth(), room=1), world_size=2).run()


def test_out_of_memory_batch_normalisation_keeps_the_parts_that_the_hash_knows() -> None:
    """In parts of another size it would learn from other statistics, under the hash of whole batches."""
    network = nn.Sequential(nn.BatchNorm2d(1), smooth())
    with pytest.raises(RunError, match="out of memory; use --accumulation=2"):
        trainer(1, model=SmallDevice(network, room=1)).run()


def test_out_of_memory_weights_are_not_perturbed_by_other_parts_than_the_hash_says() -> None:
    """Each part has a perturbation of its own: two of half a batch are another training."""
    model = SmallDevice(smooth(), room=1)
    with pytest.raises(RunError, match="out of memory; use --accumulation=2"):
        trainer(1, model=model, perturbation=AdversarialWeights(0.01)).run()


def test_other_errors_end_training_and_those_of_libraries_for_lack_of_memory_do_not() -> None:
    small = SmallDevice(smooth(), room=1)
    small.error = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    trainer(2, model=small, notice=lambda text: None).run()
    assert small.refused == 1
    small.error = RuntimeError("CUDA error: device-side assert triggered")
    with pytest.raises(RuntimeError, match="device-side assert"):
        trainer(2, model=small).run()


def test_a_batch_that_runs_out_of_memory_half_way_is_counted_once() -> None:
    class Interrupted(SmallDevice):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.room -= 1  # the second pass fails, once
            if self.room == 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.network(images)

    large, small = smooth(), Interrupted(smooth(), room=2)
    straight, again = trainer(2, model=large), trainer(2, model=small, accumulation=2, notice=lambda text: None)
    # Parts of a batch of two hold one image each; a third and fourth part would be empty, so that the size is kept.
    again._use_smaller_parts = lambda size: None  # type: ignore[method-assign]
    straight.run()
    again.run()
    assert straight.totals.seen == again.totals.seen
    assert torch.allclose(straight.totals.sums["loss"], again.totals.sums["loss"], atol=1e-5)
