"""The emulated CUDA device itself: what it refuses, what it counts, and that it leaves torch as it was."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import pytest
import torch
from torch import Tensor, nn

from tests.emulated.cuda import Counts, DeviceError, emulated_cuda, to_cuda
from tests.training.sources import IMAGES, LABELS


@pytest.fixture
def counts() -> Iterator[Counts]:
    with emulated_cuda() as counted:
        yield counted


def test_tensors_of_two_devices_are_refused(counts: Counts) -> None:
    images, labels = IMAGES.to("cuda"), LABELS.cuda()
    assert images.device == torch.device("cuda:0") and images.is_cuda and not images.is_cpu
    for refused in (
        lambda: images + IMAGES,
        lambda: IMAGES * images[0, 0, 0, 0],
        lambda: torch.cat([images, IMAGES]),
        lambda: torch.stack([images.sum(), IMAGES.sum()]),
        lambda: images.flatten(1) @ IMAGES.flatten(1).T,
        lambda: images.index_put_((labels,), IMAGES),
        lambda: torch.zeros(()).add_(images.sum()),
        lambda: torch.where(IMAGES > 0, images, 0.0),
    ):
        with pytest.raises(DeviceError, match="expected all tensors on cuda:0"):
            refused()
    assert torch.equal((images * IMAGES.sum() + 1).cpu(), IMAGES * IMAGES.sum() + 1)  # 0-dimensional
    assert torch.equal(images[LABELS].cpu(), IMAGES[LABELS])  # indices may be on the CPU


def test_memory_of_the_device_is_not_read(counts: Counts) -> None:
    images = to_cuda(IMAGES)
    for read in (lambda: images.numpy(), lambda: numpy.asarray(images), lambda: numpy.abs(images)):
        with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy"):
            read()


def test_a_generator_of_the_cpu_and_small_integer_products_are_refused(counts: Counts) -> None:
    with pytest.raises(DeviceError, match="expected a generator on cuda"):
        torch.randn(3, generator=torch.Generator(), device="cuda")
    bytes_ = torch.ones(16, 16, dtype=torch.int8, device="cuda")
    with pytest.raises(DeviceError, match="_int_mm"):
        torch._int_mm(bytes_, bytes_)


def test_kernels_and_waits_are_counted(counts: Counts) -> None:
    images = to_cuda(IMAGES)
    total = (images.view(6, -1)[:, 1:].T * 2).sum()
    assert (counts.kernels, counts.waited) == ({"mul": 1, "sum": 1}, 0)
    assert float(total) > 0 and bool(total > 0)
    assert counts.waits == {"item": 2}
    counts.reset()
    for wait in (
        lambda: images[images > 0.5],
        lambda: images.nonzero(),
        lambda: images.cpu(),
        lambda: images.tolist(),
        lambda: IMAGES.to(images.device),
        lambda: torch.tensor([1.0], device="cuda"),
        lambda: images.copy_(IMAGES),
        lambda: images.sum().item(),
    ):
        before = counts.waited
        wait()
        assert counts.waited == before + 1, wait
    assert all(place.startswith("tests/test_emulated_cuda.py:") for place in counts.places)


def test_gradients_cross_the_devices(counts: Counts) -> None:
    """Through .to in both directions; a module and its copy move as a whole."""
    model = nn.Linear(16, 3)
    weight = model.weight.detach().clone()
    model.to("cuda")
    inputs = IMAGES.flatten(1).requires_grad_(True)
    model(inputs.to("cuda")).square().sum().cpu().backward()
    assert inputs.grad is not None and not inputs.grad.is_cuda
    assert all(each.grad is not None and each.grad.is_cuda for each in model.parameters())
    expected = nn.functional.linear(IMAGES.flatten(1), weight, model.bias.detach().cpu())
    assert torch.equal(model(to_cuda(IMAGES.flatten(1))).detach().cpu(), expected.detach())


def test_everything_is_as_before_afterwards() -> None:
    names = ("is_available", "device_count", "set_device", "_lazy_init", "synchronize")
    before = [getattr(torch.cuda, name) for name in names]
    others = torch.autocast, torch.is_autocast_enabled, torch.__future__.get_swap_module_params_on_conversion()
    with pytest.raises(ZeroDivisionError), emulated_cuda():
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
        raise ZeroDivisionError
    assert before == [getattr(torch.cuda, name) for name in names]
    assert others == (
        torch.autocast,
        torch.is_autocast_enabled,
        torch.__future__.get_swap_module_params_on_conversion(),
    )
    assert type(IMAGES.to("cpu") + 1) is Tensor
