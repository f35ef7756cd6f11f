"""Bytes as floats."""

from __future__ import annotations

import numpy
import pytest
import torch

from foundations import pixels
from foundations.pixels import as_floats

BYTES = torch.arange(256, dtype=torch.uint8)


class Elsewhere(torch.Tensor):
    """A tensor that reports another device than the CPU, where its memory is."""

    device = torch.device("cuda:0")


@pytest.fixture
def table_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of a GPU, kept on the CPU; and memory for its results likewise."""
    table, empty = pixels._table(torch.device("cpu")), torch.empty
    monkeypatch.setattr(pixels, "_table", lambda device: table)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, device: empty(shape, dtype=dtype))


def nearest(images: torch.Tensor) -> torch.Tensor:
    """The float32 nearest to k / 255, by NumPy's division in float64."""
    return torch.from_numpy((images.numpy().astype(numpy.float64) / 255).astype(numpy.float32))


@pytest.mark.parametrize("images", [BYTES.view(4, 4, 16), BYTES.view(16, 16).T, BYTES[:0]])
def test_a_byte_becomes_the_nearest_float_on_every_device(
    images: torch.Tensor, table_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = nearest(images)
    for made in (as_floats(images), as_floats(images, out=torch.full(images.shape, 7.0))):
        assert made.dtype == torch.float32 and torch.equal(made, expected)
    monkeypatch.setattr(pixels, "PIECE", 100)
    there, out = images.as_subclass(Elsewhere), torch.full(images.shape, 7.0)
    assert torch.equal(as_floats(there).as_subclass(torch.Tensor), expected)
    as_floats(there, out=out)
    assert torch.equal(out, expected)


def test_a_gpu_divides_by_nothing(table_here: None) -> None:
    """There a division by 255 is a product with 1 / 255, which is another number for some bytes."""
    product = BYTES.float() * (1 / torch.tensor(255.0))
    assert not torch.equal(product, nearest(BYTES))
    assert torch.equal(as_floats(BYTES.as_subclass(Elsewhere)).as_subclass(torch.Tensor), nearest(BYTES))


def test_floats_stay_what_they_are() -> None:
    images = torch.rand(3, 4)
    assert as_floats(images) is images
    assert torch.equal(as_floats(images.half()), images.half().float())
    assert torch.equal(as_floats(images.half(), out=torch.empty(3, 4)), images.half().float())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    assert torch.equal(as_floats(BYTES.cuda()).cpu(), nearest(BYTES))
