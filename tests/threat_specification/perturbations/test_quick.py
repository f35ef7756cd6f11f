"""The quick changes against loops over pixels, and what they promise: bounds, seeds, growing strength, no waiting."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.emulated.cuda import emulated_cuda, to_cuda
from threat_specification.perturbations.draws import Draws
from threat_specification.perturbations.registry import SAFE, SUITES

Image = NDArray[numpy.float64]  # [C,H,W]
QUICK = SUITES["quick"]
MOST_KERNELS = 230  # operations launched by all nine, 141 of which make random numbers
SEED, INDEX = 7, torch.tensor([5, 9, 2, 11])


def images(channels: int, height: int, width: int, count: int = 4) -> Tensor:
    smooth = torch.rand(count, channels, 5, 5, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(smooth, size=(height, width), mode="bilinear")


def made(name: str, x: Tensor, severity: int, index: Tensor = INDEX, seed: int = SEED) -> Tensor:
    return SAFE[name](x, Draws(seed, index, name), severity)


def pixels(image: Image) -> list[tuple[int, int, int]]:
    return list(numpy.ndindex(image.shape))


def at(image: Image, c: int, h: int, w: int) -> float:
    """A pixel, or the nearest one of the border."""
    return float(image[c, min(max(h, 0), image.shape[1] - 1), min(max(w, 0), image.shape[2] - 1)])


# One image, its random numbers, and the parameters of the severity.


def brighter(image: Image, draws: Draws, amount: float) -> Image:
    return numpy.array([min(1.0, image[p] + amount) for p in pixels(image)])


def darker(image: Image, draws: Draws, amount: float) -> Image:
    return numpy.array([image[p] - amount * image[p] for p in pixels(image)])


def less_contrast(image: Image, draws: Draws, factor: float) -> Image:
    mean = math.fsum(image[p] for p in pixels(image)) / image.size
    return numpy.array([mean + factor * (image[p] - mean) for p in pixels(image)])


def soft_blur(image: Image, draws: Draws, sigma: float) -> Image:
    """Over both sides at once."""
    reach = range(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    weights = {(i, j): math.exp(-(i * i + j * j) / (2 * sigma * sigma)) for i in reach for j in reach}
    total = sum(weights.values())
    return numpy.array(
        [sum(v * at(image, c, h + i, w + j) for (i, j), v in weights.items()) / total for c, h, w in pixels(image)]
    )


def fine_noise(image: Image, draws: Draws, scale: float) -> Image:
    level = draws.uniform(*image.shape)[0].numpy()
    return numpy.array([min(1, max(0, image[p] + scale * 12**0.5 * (float(level[p]) - 0.5))) for p in pixels(image)])


def coarse_pixels(image: Image, draws: Draws, side: int, share: float) -> Image:
    def block(c: int, h: int, w: int) -> float:
        top, left = h // side * side, w // side * side
        return float(image[c, top : top + side, left : left + side].mean())

    return numpy.array([(1 - share) * image[p] + share * block(*p) for p in pixels(image)])


def low_field(image: Image, draws: Draws, amount: float) -> Image:
    """Keys (1981): cubic convolution with a = -3/4; the outermost nodes lie on the outermost pixels."""
    nodes = draws.uniform(1, 4, 4).double().numpy()[0] * 2 - 1

    def weight(far: float) -> float:
        far, a = abs(far), -0.75
        if far <= 1:
            return (a + 2) * far**3 - (a + 3) * far**2 + 1
        return a * (far**3 - 5 * far**2 + 8 * far - 4) if far < 2 else 0.0

    def value(h: int, w: int) -> float:
        down, right = 3 * h / (image.shape[1] - 1), 3 * w / (image.shape[2] - 1)
        near = range(-2, 6)
        return sum(weight(down - i) * weight(right - j) * at(nodes, 0, i, j) for i in near for j in near)

    field = {(h, w): value(h, w) for h in range(image.shape[1]) for w in range(image.shape[2])}
    size = math.sqrt(sum(v * v for v in field.values()) / len(field))
    return numpy.array([min(1, max(0, image[c, h, w] + amount * field[h, w] / size)) for c, h, w in pixels(image)])


def shift(image: Image, draws: Draws, share: float) -> Image:
    angle = float(draws.uniform()[0]) * 2 * math.pi
    far = max(1, round(share * min(image.shape[1:])))
    down, right = round(far * math.sin(angle)), round(far * math.cos(angle))
    return numpy.array([at(image, c, h + down, w + right) for c, h, w in pixels(image)])


def fewer_levels(image: Image, draws: Draws, levels: int) -> Image:
    known = [level / (levels - 1) for level in range(levels)]
    return numpy.array([min(known, key=lambda level: abs(level - image[p])) for p in pixels(image)])


LOOPS: dict[str, Callable[..., Image]] = {
    loop.__name__: loop
    for loop in (
        brighter, darker, less_contrast, soft_blur, fine_noise, coarse_pixels, low_field, shift, fewer_levels,
    )
}  # fmt: skip


def test_the_suite_is_what_is_tested_here() -> None:
    assert list(LOOPS) == QUICK
    assert all(SAFE[name].severities == (1, 2, 3, 4, 5) for name in QUICK)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 10)])
@pytest.mark.parametrize("name", QUICK)
def test_the_pixels_are_those_of_a_loop(name: str, shape: tuple[int, int, int]) -> None:
    x = images(*shape)
    for severity in (1, 3, 5):
        found = made(name, x, severity).double().numpy()
        for row, image in enumerate(x.double().numpy()[:2]):
            draws = Draws(SEED, INDEX[row : row + 1], name)
            expected = LOOPS[name](image, draws, *SAFE[name].small[severity - 1])
            assert numpy.abs(found[row].ravel() - expected).max() < 2e-6, (severity, row)


@pytest.mark.parametrize("name", QUICK)
def test_strength_grows_with_severity(name: str) -> None:
    """Up to equal shifts of very small images; sizes of the large parameters, too."""
    for shape in ((1, 8, 8), (3, 32, 32), (3, 96, 100)):
        x = images(*shape)
        lengths = [float((made(name, x, level) - x).flatten(1).norm(dim=1).mean()) for level in range(1, 6)]
        assert lengths[0] > 0
        grows = lengths[0] <= lengths[1] if name == "shift" and shape[1] == 8 else lengths[0] < lengths[1]
        assert grows and lengths == sorted(lengths), (shape, lengths)


@pytest.mark.parametrize("name", QUICK)
def test_an_image_is_changed_alike_in_any_batch(name: str) -> None:
    """The same bits alone, in another order and in parts; others with another seed or index if there is chance."""
    for shape in ((1, 8, 8), (1, 9, 9), (3, 40, 37)):
        x = images(*shape)
        whole, order = made(name, x, 3), torch.tensor([2, 0, 3, 1])
        assert torch.equal(made(name, x[order], 3, INDEX[order]), whole[order])
        for part in (slice(0, 1), slice(1, 4)):
            assert torch.equal(made(name, x[part], 3, INDEX[part]), whole[part])
        chance = name in ("fine_noise", "low_field", "shift")
        same = torch.stack([x[0]] * 4)
        assert (made(name, same, 3) != made(name, same, 3)[:1]).any() == chance
        assert (made(name, x, 3, seed=8) != whole).any() == chance


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_images_stay_in_bounds(value: float) -> None:
    """Changes of form alone leave them as they are."""
    x = torch.full((4, 3, 9, 8), value)
    for name in QUICK:
        for severity in range(1, 6):
            y = made(name, x, severity)
            assert bool(((y >= 0) & (y <= 1)).all()) and y.isfinite().all(), name
            if name in ("less_contrast", "soft_blur", "coarse_pixels", "shift", "fewer_levels"):
                assert torch.allclose(y, x, atol=1e-6), name
    assert bool((made("darker", x, 3) == 0).all()) == (value == 0)
    assert bool((made("brighter", x, 3) == 1).all()) == (value == 1)


def test_shifts_are_as_long_as_asked_in_many_directions() -> None:
    """A point of light is found at a distance of three pixels of 32, up to rounding, on all sides."""
    x = torch.zeros(300, 1, 32, 32)
    x[:, :, 16, 16] = 1
    y = made("shift", x, 3, torch.arange(300))
    assert torch.equal(y.flatten(1).sum(1), torch.ones(300))
    place = y.flatten(1).argmax(1)
    ways = {(int(p) // 32 - 16, int(p) % 32 - 16) for p in place}
    assert all(2.2 < math.hypot(*way) < 3.7 for way in ways)
    assert len(ways) >= 12 and {(-3, 0), (3, 0), (0, -3), (0, 3)} <= ways


def test_the_field_is_smooth_grey_and_of_either_sign() -> None:
    x = torch.full((200, 3, 32, 32), 0.5)
    field = made("low_field", x, 1, torch.arange(200)) - x
    assert torch.equal(field[:, 0], field[:, 1]) and torch.equal(field[:, 0], field[:, 2])
    assert torch.allclose(field.square().mean((1, 2, 3)).sqrt(), torch.tensor(SAFE["low_field"].small[0][0]), rtol=1e-4)
    means = field.mean((1, 2, 3))
    assert 60 < int((means > 0).sum()) < 140 and float(means.abs().mean()) > 0.005
    steps = (field[..., 1:] - field[..., :-1]).square().mean() / field.square().mean()
    assert float(steps) < 0.05  # of white noise: 2


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 224, 224)])
def test_a_device_is_given_little_work_and_never_waited_for(shape: tuple[int, int, int]) -> None:
    x = images(*shape, count=2)
    launched = {}
    for name in QUICK:
        with emulated_cuda() as counts:
            there, index = to_cuda(x), to_cuda(torch.arange(2))
            counts.reset()
            made(name, there, 3, index)
            launched[name] = counts.launched
            assert counts.waited == 0, (name, counts.places)
    assert sum(launched.values()) <= MOST_KERNELS, launched
