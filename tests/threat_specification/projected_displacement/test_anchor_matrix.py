"""Products with all anchors, at any size, against float64."""

import pytest
import torch

from foundations.pixels import as_floats
from threat_specification.projected_displacement import anchor_matrix
from threat_specification.projected_displacement.anchor_matrix import (
    AnchorMatrix,
    DensePart,
    TiledPart,
)

VARIANTS = {
    "dense": {},
    "one chunk": {"num_chunks": 1},
    "chunks": {"num_chunks": 3},
    "a chunk each": {"num_chunks": 1000},
    "devices": {"devices": ["cpu"] * 3},
    "more devices than anchors": {"devices": ["cpu"] * 100},
    "chunks on devices": {"num_chunks": 4, "devices": ["cpu"] * 3},
}
SIZES = [(37, 100), (300, 5000), (20, 140_000)]  # 5000 and 140,000 pixels take several tiles


def bytes_of(count, width, seed=0):
    return torch.randint(0, 256, (count, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def error(got, expected):
    return float((got.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("count,width", SIZES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_all_products(variant, dtype, count, width):
    images = bytes_of(count, width) if dtype == torch.uint8 else as_floats(bytes_of(count, width)).to(dtype)
    matrix = AnchorMatrix(images, **VARIANTS[variant])
    centred = as_floats(images).double() - matrix.centre.double()
    generator = torch.Generator().manual_seed(1)
    v, w = torch.randn(5, width, generator=generator), torch.rand(5, count, generator=generator)
    assert error(matrix.products(v), v.double() @ centred.T) < 1.5e-6
    assert error(matrix.square_products(v.abs()), v.abs().double() @ centred.square().T) < 2e-6
    assert error(matrix.combine(w), w.double() @ centred) < 1.5e-6
    assert error(matrix.squared_norms, centred.square().sum(1)) < 1e-7
    numbers = torch.tensor([3, count - 1, 0, 3])
    assert torch.equal(matrix.rows(numbers), as_floats(images)[numbers])


def test_size_chooses_the_holder(monkeypatch):
    monkeypatch.setattr(anchor_matrix, "DENSE_BYTES", 4 * 10 * 100)
    assert type(AnchorMatrix(bytes_of(10, 100)).parts[0]) is DensePart
    large = AnchorMatrix(bytes_of(11, 100))
    assert type(large.parts[0]) is TiledPart
    assert large.parts[0].images.dtype == torch.uint8
    assert not hasattr(large.parts[0], "matrix")


def test_tiles_share_one_buffer():
    part = AnchorMatrix(bytes_of(600, 9000), num_chunks=4).parts[0]
    places = {tile.data_ptr() for _, _, tile in part.tiles()}
    assert len(places) == 1
    assert sum(b.numel() * b.element_size() for b in part._buffers.kept.values()) == 150 * 4096 * 5
    before = {kind: buffer.data_ptr() for kind, buffer in part._buffers.kept.items()}
    part.products(torch.randn(3, 9000))
    assert before == {kind: buffer.data_ptr() for kind, buffer in part._buffers.kept.items()}


def test_precision_is_kept_and_restored():
    matrix = AnchorMatrix(bytes_of(50, 700))
    v = torch.randn(4, 700, generator=torch.Generator().manual_seed(0))
    plain = matrix.products(v)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            lowered = matrix.products(v)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert lowered.dtype == torch.float32 and torch.equal(plain, lowered)


@pytest.mark.parametrize("variant", ["dense", "chunks", "devices"])
def test_gradients(variant):
    matrix = AnchorMatrix(bytes_of(12, 90), **VARIANTS[variant])
    v = torch.randn(3, 90, requires_grad=True)
    weights = torch.rand(3, 12)
    (matrix.products(v) * weights).sum().backward()
    assert v.grad is not None
    expected = weights.double() @ (as_floats(bytes_of(12, 90)).double() - matrix.centre.double())
    assert error(v.grad, expected) < 1e-6


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", ["dense", "chunks"])
def test_on_cuda(variant):
    images = bytes_of(300, 5000)
    matrix = AnchorMatrix(images, VARIANTS[variant].get("num_chunks", True), ["cuda"])
    v = torch.randn(5, 5000)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        got = matrix.products(v.cuda()).cpu()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert error(got, v.double() @ (as_floats(images).double() - matrix.centre.cpu().double()).T) < 1.5e-6
