"""Products with all anchors, at any size, against float64."""

import pytest
import torch

from foundations.errors import UsageError
from threat_specification.projected_displacement import anchor_matrix
from threat_specification.projected_displacement.anchor_matrix import (
    AnchorMatrix,
    DenseShard,
    IntegerShard,
    TiledShard,
    as_floats,
    split_bytes,
)

VARIANTS = {
    "dense": {},
    "one chunk": {"num_chunks": 1},
    "chunks": {"num_chunks": 3},
    "a chunk each": {"num_chunks": 1000},
    "shards": {"devices": ["cpu"] * 3},
    "more shards than anchors": {"devices": ["cpu"] * 100},
    "chunks in shards": {"num_chunks": 4, "devices": ["cpu"] * 3},
    "int8": {"product": "int8"},
    "int8 in shards": {"product": "int8", "devices": ["cpu"] * 3},
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
    if "int8" in variant and dtype != torch.uint8:
        with pytest.raises(UsageError, match="uint8"):
            AnchorMatrix(images, **VARIANTS[variant])
        return
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
    assert type(AnchorMatrix(bytes_of(10, 100)).shards[0]) is DenseShard
    large = AnchorMatrix(bytes_of(11, 100))
    assert type(large.shards[0]) is TiledShard
    assert large.shards[0].images.dtype == torch.uint8
    assert not hasattr(large.shards[0], "matrix")


def test_tiles_share_one_buffer():
    shard = AnchorMatrix(bytes_of(600, 9000), num_chunks=4).shards[0]
    places = {tile.data_ptr() for _, _, tile in shard.tiles()}
    assert len(places) == 1
    assert sum(b.numel() * b.element_size() for b in shard._buffers.kept.values()) == 150 * 4096 * 5
    before = {kind: buffer.data_ptr() for kind, buffer in shard._buffers.kept.items()}
    shard.products(torch.randn(3, 9000))
    assert before == {kind: buffer.data_ptr() for kind, buffer in shard._buffers.kept.items()}


@pytest.mark.parametrize("num_bytes", [2, 3])
def test_bytes_make_up_the_number(num_bytes):
    v = torch.randn(6, 500, generator=torch.Generator().manual_seed(0))
    v[1] *= 1e-6
    v[2] = 0
    v[3, 0] = 100.0
    v[4] = -v[4].abs().amax()  # all digits of the lowest number there is
    digits, unit = split_bytes(v, num_bytes)
    places = (256.0 ** torch.arange(num_bytes, dtype=torch.float64)).view(-1, 1, 1)
    whole = (digits.view(num_bytes, *v.shape).double() * places).sum(0)
    slack = 1e-6 * v.abs().amax(1).double()
    assert bool(((whole * unit.view(-1, 1).double() - v).abs() <= (0.5 * unit.double() + slack).view(-1, 1)).all())


def test_the_largest_sums_fit_int32():
    """Every anchor pixel at -128 and every byte of v at 127, over more columns than fit at once."""
    width = 150_528
    images = torch.zeros(4, width, dtype=torch.uint8)
    matrix = AnchorMatrix(images, product="int8")
    for value in (0.3, -0.3):
        v = torch.full((2, width), value)
        expected = v.double() @ (as_floats(images).double() - matrix.centre.double()).T
        assert error(matrix.products(v), expected) < 1e-6
        assert error(matrix.rough_products(v, torch.zeros_like(v))[0], expected) < 1e-4
    assert 127 * 128 * anchor_matrix.INTEGER_COLUMNS < 2**31


def test_rough_products_err_as_they_say():
    images = bytes_of(200, 3000)
    matrix = AnchorMatrix(images, product="int8")
    assert isinstance(matrix.shards[0], IntegerShard) and matrix.has_rough_products
    v = torch.randn(20, 3000, generator=torch.Generator().manual_seed(0))
    rough, deviation = matrix.rough_products(v, torch.zeros_like(v))
    errors = (rough - v.double() @ (as_floats(images).double() - matrix.centre.double()).T) / deviation
    assert 0.9 < float(errors.std()) < 1.1 and float(errors.abs().max()) < 6


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


@pytest.mark.parametrize("variant", ["dense", "chunks", "shards", "int8"])
def test_gradients(variant):
    matrix = AnchorMatrix(bytes_of(12, 90), **VARIANTS[variant])
    v = torch.randn(3, 90, requires_grad=True)
    weights = torch.rand(3, 12)
    (matrix.products(v) * weights).sum().backward()
    assert v.grad is not None
    expected = weights.double() @ (as_floats(bytes_of(12, 90)).double() - matrix.centre.double())
    assert error(v.grad, expected) < 1e-6


def test_unknown_product():
    with pytest.raises(UsageError, match="int8"):
        AnchorMatrix(bytes_of(2, 3), product="int4")


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
