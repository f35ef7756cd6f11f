"""Corruptions against independent statements: other libraries, closed forms, loops."""

from __future__ import annotations

import colorsys
import io
import math

import numpy
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from scipy.stats import poisson
from torch import Tensor

from threat_specification.perturbations import blur, digital, filters, noise
from threat_specification.perturbations.draws import Draws
from threat_specification.perturbations.registry import SAFE, SUITES, versions


def images(count: int, channels: int, side: int) -> Tensor:
    smooth = torch.rand(count, channels, 5, 5, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(smooth, size=(side, side + 2), mode="bilinear")


def draws(count: int, name: str = "test") -> Draws:
    return Draws(7, torch.arange(count), name)


@pytest.mark.parametrize("name", SAFE)
def test_every_corruption_takes_any_image_and_is_seeded_by_it(name: str) -> None:
    """Pixels stay in [0, 1]; an image comes out the same alone, in a batch, and only with the same seed."""
    entry, changed = SAFE[name], []
    for shape in ((1, 8), (3, 20), (2, 11)):
        x = images(3, *shape)
        for severity in entry.severities:
            y = entry(x, Draws(7, torch.tensor([5, 9, 2]), name), severity)
            assert y.shape == x.shape and y.dtype == torch.float32
            assert bool(((y >= 0) & (y <= 1)).all()), name
            alone = entry(x[1:2], Draws(7, torch.tensor([9]), name), severity)
            assert torch.allclose(alone, y[1:2], atol=1e-5), name
            changed.append(float((y - x).abs().max()))
    assert max(changed) > 0.01, "it changes nothing"


@pytest.mark.parametrize("name", SAFE)
def test_parameters_for_large_images(name: str) -> None:
    entry = SAFE[name]
    assert entry.parameters((3, 95, 200)) == entry.small
    assert entry.parameters((3, 96, 96)) == (entry.large or entry.small)
    assert len(entry.large) in (0, len(entry.small)) and len(entry.small) in (1, 5)
    x = images(1, 3, 96)
    assert entry(x, draws(1, name), entry.severities[-1]).isfinite().all()


def test_versions_tell_changed_corruptions_apart() -> None:
    assert versions(["quick", "C-bar", "fog"]) == {}
    assert versions(["pixelate", "quick"]) == {"pixelate": 2}
    assert versions(["C"]).keys() == {"pixelate", "elastic_transform", "zoom_blur", "snow", "glass_blur"}


def test_suites_hold_their_numbers_of_corruptions() -> None:
    assert list(SUITES) == ["C", "C-bar", "torchvision", "quick"]
    assert [len(names) for names in SUITES.values()] == [19, 10, 8, 9]
    assert sum(map(len, SUITES.values())) == len(SAFE)


def test_noises_have_the_moments_that_were_asked_for() -> None:
    x = torch.full((40, 1, 30, 30), 0.5)
    change = noise.gaussian_noise(x, draws(40), 0.1) - x
    assert float(change.std()) == pytest.approx(0.1, rel=0.02) and abs(float(change.mean())) < 0.002
    assert float((noise.speckle_noise(x, draws(40), 0.2) - x).std()) == pytest.approx(0.1, rel=0.02)
    hit = noise.impulse_noise(x, draws(40), 0.27)
    assert float((hit == 0).float().mean()) == pytest.approx(0.135, abs=0.01)
    assert float((hit == 1).float().mean()) == pytest.approx(0.135, abs=0.01)


@pytest.mark.parametrize("photons", [3, 60, 500])
def test_shot_noise_is_the_quantile_of_a_poisson(photons: int) -> None:
    x = torch.rand(4, 1, 16, 16) * (torch.rand(4, 1, 16, 16) > 0.2)
    level = draws(4).uniform(1, 16, 16).double().numpy()
    expected = poisson.ppf(level, x.double().numpy() * photons) / photons
    expected = numpy.where(x.numpy() > 0, expected, 0)
    assert numpy.allclose(noise.shot_noise(x, draws(4), photons).numpy(), expected, atol=1e-6)


def test_gaussian_blur_is_scipys() -> None:
    x = images(2, 3, 20)
    for sigma in (0.7, 2.0):
        expected = gaussian_filter(x.double().numpy(), (0, 0, sigma, sigma), mode="nearest")
        assert numpy.allclose(filters.gaussian_blur(x, sigma).numpy(), expected, atol=1e-5)


def test_a_point_of_light_shows_the_kernels() -> None:
    point = torch.zeros(1, 1, 41, 41)
    point[0, 0, 20, 20] = 1
    disk = blur.defocus_blur(point, draws(1), 4, 0.5)[0, 0]
    assert float(disk.sum()) == pytest.approx(1, abs=1e-5)
    assert int((disk > 0.5 * disk.max()).sum()) == pytest.approx(numpy.pi * 16, rel=0.1)
    streak = filters.motion_blur(point, 6, 2.0, torch.tensor([0.0]))[0, 0]
    weights = numpy.exp(-0.5 * (numpy.arange(13) / 2.0) ** 2)
    assert numpy.allclose(streak[20, 8:21].flip(0).numpy(), weights / weights.sum(), atol=1e-6)
    assert float(streak.sum()) == pytest.approx(1, abs=1e-5)


def test_glass_blur_copies_pixels_when_it_does_not_blur() -> None:
    """As the loop of the code that made CIFAR-10-C, on images of channels: views, so that a swap becomes a copy."""
    x, reach = images(3, 2, 12), 1
    y = blur.glass_blur(x, draws(3), 0.05, reach, 2)
    expected, drawn = x.numpy().transpose(0, 2, 3, 1).copy(), draws(3)
    for _ in range(2):
        down, right = ((drawn.integers(2 * reach, 12, 14) - reach).numpy() for _ in range(2))
        for image, lower, further in zip(expected, down, right, strict=True):
            for h in range(12 - reach, reach, -1):
                for w in range(14 - reach, reach, -1):
                    h2, w2 = h + lower[h, w], w + further[h, w]
                    image[h, w], image[h2, w2] = image[h2, w2], image[h, w]
    assert numpy.array_equal(y.numpy().transpose(0, 2, 3, 1), expected)
    assert not torch.equal(x, y)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (48, 64), (47, 33)])
def test_pixelate_is_pillows(size: tuple[int, int]) -> None:
    x = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(x[0, 0].numpy())
    for (factor,) in (*SAFE["pixelate"].small, *SAFE["pixelate"].large):
        small = image.resize((int(size[1] * factor), int(size[0] * factor)), Image.Resampling.BOX)
        expected = numpy.asarray(small.resize(size[::-1], Image.Resampling.BOX))
        assert numpy.allclose(digital.pixelate(x, draws(1), factor)[0, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 1.5, 6.0, 22.0])
def test_a_blur_whose_borders_reflect_is_scipys(sigma: float) -> None:
    x = torch.rand(1, 1, 28, 31, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = gaussian_filter(x[0, 0].numpy(), sigma, mode="reflect", truncate=3)
    assert numpy.allclose(filters.reflected_blur(x, sigma, 3.0)[0, 0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("side", [28, 32, 224])
def test_zoom_is_that_of_the_published_code(side: int) -> None:
    """Whole pixels cut out, enlarged by scipy, and trimmed."""
    x = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    for factor in (1.0, 1.01, 1.06, 1.11, 1.25, 1.3, 1.75, 2.25, 4.5):
        kept = math.ceil(side / factor)
        first = (side - kept) // 2
        large = zoom(x[0, 0, first : first + kept, first : first + kept].double().numpy(), factor, order=1)
        trimmed = (len(large) - side) // 2
        expected = large[trimmed : trimmed + side, trimmed : trimmed + side]
        assert numpy.allclose(filters.zoom(x, factor)[0, 0].numpy(), expected, atol=1e-4)


def test_elastic_changes_large_images_by_the_published_lengths() -> None:
    """Root mean square of a coordinate's displacement, in pixels, as the authors' code draws it.

    With replicated borders the first was 37 times as long. A slope shows how far each pixel was moved.
    """
    rows = (torch.arange(224.0) / 223).view(1, 1, -1, 1).expand(16, 1, 224, 224)
    for severity, published in ((1, 1.07), (2, 4.65), (3, 0.83), (4, 1.16), (5, 1.99)):
        strength, smoothness, _ = SAFE["elastic_transform"].large[severity - 1]
        moved = digital.elastic_transform(rows, draws(16), strength, smoothness, 0.0)
        inner = (moved - rows)[..., 30:-30, 30:-30] * 223
        assert float(inner.square().mean().sqrt()) == pytest.approx(published, rel=0.35)


def test_colours_are_those_of_colorsys() -> None:
    x = torch.rand(2, 3, 4, 4)
    brighter, paler = digital.brightness(x, draws(2), 0.2), digital.saturate(x, draws(2), 0.3, 0.1)
    for image, bright, pale in zip(x, brighter, paler, strict=True):
        for pixel, b, p in zip(*(t.flatten(1).T.tolist() for t in (image, bright, pale)), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            assert b == pytest.approx(colorsys.hsv_to_rgb(h, s, min(1, v + 0.2)), abs=1e-5)
            assert p == pytest.approx(colorsys.hsv_to_rgb(h, min(1, 0.3 * s + 0.1), v), abs=1e-5)


def test_contrast_pixelate_and_jpeg() -> None:
    x = images(2, 3, 16)[..., :16]
    mean = x.mean((2, 3), keepdim=True)
    assert torch.allclose(digital.contrast(x, draws(2), 0.4), 0.4 * x + 0.6 * mean, atol=1e-6)
    blocks = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(digital.pixelate(x, draws(2), 0.5), blocks, atol=1e-6)
    coded = digital.jpeg_compression(x, draws(2), 30)
    for image, found in zip(x, coded, strict=True):
        buffer = io.BytesIO()
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=30)
        expected = numpy.asarray(Image.open(buffer)).transpose(2, 0, 1) / 255
        assert numpy.abs(found.numpy() - expected).mean() < 0.02


def test_warps_leave_an_image_alone_when_they_are_of_size_zero() -> None:
    x = images(2, 1, 14)
    assert torch.allclose(digital.elastic_transform(x, draws(2), 0, 0.1, 0), x, atol=1e-4)
    assert torch.allclose(filters.zoom(x, 1.0), x, atol=1e-5)


def test_severities_share_their_random_numbers() -> None:
    x = torch.full((2, 1, 9, 9), 0.5)
    mild, strong = (SAFE["gaussian_noise"](x, draws(2, "gaussian_noise"), severity) - x for severity in (1, 5))
    assert torch.allclose(strong, mild * 2.5, atol=1e-5)
