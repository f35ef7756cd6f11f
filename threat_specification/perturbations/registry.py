"""The safe perturbations by name: suite, function, and parameters for severities 1 to 5.

C            the 19 common corruptions of Hendrycks and Dietterich (2019), with the parameters of CIFAR-10-C for small
             images and of ImageNet-C for large ones
C-bar        the noises of ImageNet-C-bar (Mintun et al. 2021), with the levels of CIFAR-10-C-bar for small images if it
             has the noise, and else those of ImageNet-C-bar
torchvision  common augmentations of torchvision v2; their strengths were chosen for this project
quick        nine changes that are cheap enough for every batch of training (quick.py); like C, they have parameters for
             small and for large images, chosen to be about as long in mean l2 as those of the same kind in C
             (coarse_pixels longer on small images)

CATEGORIES divides them by kind, as Table 2 of arXiv 2501.18098 does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foundations.arithmetic import full_precision
from foundations.errors import UsageError
from foundations.lazy import load_object

if TYPE_CHECKING:  # this file is read for names before a run, without torch
    from torch import Tensor

    from threat_specification.perturbations.draws import Draws

LARGE = 96  # images whose shorter side has at least this many pixels get the parameters for large images

Parameters = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Safe:
    """A corruption: `function` is "file:name" in this folder, called as (x, draws, *parameters of a severity).

    version   raised when its images change, so that no figure of other images is found again (`versions`)
    """

    suite: str
    function: str
    small: Parameters
    large: Parameters = ()
    version: int = 1

    def parameters(self, shape: tuple[int, ...]) -> Parameters:
        """Parameters for images [..., H, W]: one tuple for each severity."""
        return self.large if self.large and min(shape[-2:]) >= LARGE else self.small

    @property
    def severities(self) -> tuple[int, ...]:
        """The available severities: 1 to 5, or only 1 for a corruption without a strength."""
        return tuple(range(1, len(self.small) + 1))

    def __call__(self, x: Tensor, draws: Draws, severity: int) -> Tensor:
        """The corrupted images [B,C,H,W] at a severity, in [0, 1].

        Raises UsageError for images with a side of one pixel, which have no neighbours.
        """
        if min(x.shape[-2:]) < 2:
            raise UsageError(f"safe changes: expected images from 2x2 pixels up, got {x.shape[-2]}x{x.shape[-1]}")
        change: Callable[..., Tensor] = load_object(f"{__package__}.{self.function}")
        with full_precision(x.device.type, convolutions=True):
            return change(x, draws, *self.parameters(tuple(x.shape))[severity - 1]).clamp(0, 1)


def _graded(*levels: Any) -> Parameters:
    return tuple((level,) for level in levels)


def _elastic(*fractions: tuple[float, float, float]) -> Parameters:
    """Convert ImageNet-C's fractions of 244 pixels into fractions of the 224 pixels that its images have."""
    return tuple(tuple(244 / 224 * fraction for fraction in row) for row in fractions)


def _c(function: str, small: Parameters, large: Parameters, version: int = 1) -> Safe:
    return Safe("C", function, small, large, version)


def _c_bar(name: str, large: Parameters, small: Parameters = ()) -> Safe:
    return Safe("C-bar", f"c_bar:{name}", small or large, large)


def _quick(name: str, small: Parameters, large: Parameters = ()) -> Safe:
    return Safe("quick", f"quick:{name}", small, large)


SAFE: dict[str, Safe] = {
    "gaussian_noise": _c(
        "noise:gaussian_noise", _graded(0.04, 0.06, 0.08, 0.09, 0.10), _graded(0.08, 0.12, 0.18, 0.26, 0.38)
    ),
    "shot_noise": _c("noise:shot_noise", _graded(500, 250, 100, 75, 50), _graded(60, 25, 12, 5, 3)),
    "impulse_noise": _c(
        "noise:impulse_noise", _graded(0.01, 0.02, 0.03, 0.05, 0.07), _graded(0.03, 0.06, 0.09, 0.17, 0.27)
    ),
    "defocus_blur": _c(
        "blur:defocus_blur",
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": _c(
        "blur:glass_blur",
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        version=2,
    ),
    "motion_blur": _c(
        "blur:motion_blur",
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": _c(
        "blur:zoom_blur",
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        version=2,
    ),
    "snow": _c(
        "weather:snow",
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        version=2,
    ),
    "frost": _c(
        "weather:frost",
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "fog": _c(
        "weather:fog",
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": _c("digital:brightness", _graded(0.05, 0.1, 0.15, 0.2, 0.3), _graded(0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": _c("digital:contrast", _graded(0.75, 0.5, 0.4, 0.3, 0.15), _graded(0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": _c(
        "digital:elastic_transform",
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        _elastic((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
        version=2,
    ),
    "pixelate": _c(
        "digital:pixelate", _graded(0.95, 0.9, 0.85, 0.75, 0.65), _graded(0.6, 0.5, 0.4, 0.3, 0.25), version=2
    ),
    "jpeg_compression": _c("digital:jpeg_compression", _graded(80, 65, 58, 50, 40), _graded(25, 18, 15, 10, 7)),
    "speckle_noise": _c(
        "noise:speckle_noise", _graded(0.06, 0.1, 0.12, 0.16, 0.2), _graded(0.15, 0.2, 0.35, 0.45, 0.6)
    ),
    "gaussian_blur": _c("blur:gaussian_blur", _graded(0.4, 0.6, 0.7, 0.8, 1), _graded(1, 2, 3, 4, 6)),
    "spatter": _c(
        "weather:spatter",
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
    ),
    "saturate": _c(
        "digital:saturate",
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    ),
    "blue_noise_sample": _c_bar(
        "blue_noise_sample", _graded(0.8, 1.6, 2.4, 4.0, 5.6), _graded(0.7, 1.4, 2.1, 3.5, 4.2)
    ),
    "brownish_noise": _c_bar("brownish_noise", _graded(1, 2, 3, 4, 5), _graded(2.5, 4, 5.5, 6.5, 7)),
    "caustic_refraction": _c_bar("caustic_refraction", _graded(2.35, 3.2, 4.9, 6.6, 9.15)),
    "checkerboard_cutout": _c_bar("checkerboard_cutout", _graded(2, 3, 4, 5, 6), _graded(1, 2, 3, 4, 5)),
    "cocentric_sine_waves": _c_bar("cocentric_sine_waves", _graded(3, 5, 8, 9, 10)),
    "inverse_sparkles": _c_bar("inverse_sparkles", _graded(1, 2, 4, 9, 10), _graded(1, 1.5, 2.5, 4.5, 5)),
    "perlin_noise": _c_bar("perlin_noise", _graded(4.6, 5.2, 5.8, 7.6, 8.8)),
    "plasma_noise": _c_bar("plasma_noise", _graded(4.75, 7, 8.5, 9.25, 10)),
    "single_frequency_greyscale": _c_bar("single_frequency_greyscale", _graded(1, 1.5, 2, 4.5, 5)),
    "sparkles": _c_bar("sparkles", _graded(1, 2, 3, 5, 6), _graded(0.7, 3.5, 5.6, 6.3, 7)),
    "color_jitter": Safe("torchvision", "colour_and_shape:color_jitter", _graded(0.1, 0.2, 0.3, 0.4, 0.5)),
    "affine": Safe("torchvision", "colour_and_shape:affine", ((3, 0.02), (6, 0.04), (9, 0.06), (12, 0.08), (15, 0.1))),
    "perspective": Safe("torchvision", "colour_and_shape:perspective", _graded(0.05, 0.1, 0.15, 0.2, 0.3)),
    "elastic": Safe("torchvision", "colour_and_shape:elastic", ((4, 3), (8, 3), (12, 3), (16, 3), (20, 3))),
    "posterize": Safe("torchvision", "colour_and_shape:posterize", _graded(6, 5, 4, 3, 2)),
    "autocontrast": Safe("torchvision", "colour_and_shape:autocontrast", ((),)),
    "sharpness": Safe("torchvision", "colour_and_shape:sharpness", _graded(1.5, 2, 3, 4, 6)),
    "grayscale": Safe("torchvision", "colour_and_shape:grayscale", _graded(0.2, 0.4, 0.6, 0.8, 1)),
    "brighter": _quick("brighter", _graded(0.045, 0.085, 0.13, 0.17, 0.25), _graded(0.085, 0.17, 0.25, 0.33, 0.4)),
    "darker": _quick("darker", _graded(0.08, 0.16, 0.24, 0.31, 0.44), _graded(0.17, 0.34, 0.49, 0.61, 0.7)),
    "less_contrast": _quick("less_contrast", _graded(0.75, 0.5, 0.4, 0.3, 0.15), _graded(0.4, 0.3, 0.2, 0.1, 0.05)),
    "soft_blur": _quick("soft_blur", _graded(0.4, 0.6, 0.7, 0.8, 1), _graded(1, 2, 3, 4, 6)),
    "fine_noise": _quick("fine_noise", _graded(0.04, 0.06, 0.08, 0.09, 0.1), _graded(0.08, 0.12, 0.175, 0.25, 0.35)),
    "coarse_pixels": _quick(
        "coarse_pixels", ((2, 0.4), (2, 0.7), (2, 1), (3, 0.85), (3, 1)), ((2, 1), (3, 0.85), (3, 1), (4, 1), (5, 1))
    ),
    "low_field": _quick("low_field", _graded(0.055, 0.11, 0.147, 0.175, 0.22), _graded(0.1, 0.18, 0.25, 0.265, 0.28)),
    "shift": _quick("shift", _graded(1 / 32, 2 / 32, 3 / 32, 4 / 32, 1 / 6)),
    "fewer_levels": _quick("fewer_levels", _graded(41, 19, 9, 5, 3)),
}

# Kind of change -> its corruptions: the paper's six categories, and "geometric", which it does not have.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "noise": (
        "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "blue_noise_sample", "brownish_noise",
        "perlin_noise", "single_frequency_greyscale", "plasma_noise", "fine_noise",
    ),
    "blur": (
        "gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "cocentric_sine_waves",
        "caustic_refraction", "soft_blur",
    ),
    "compression": ("pixelate", "jpeg_compression", "coarse_pixels"),
    "digital": (
        "brightness", "contrast", "saturate", "elastic_transform", "elastic", "color_jitter", "posterize",
        "autocontrast", "sharpness", "grayscale", "brighter", "darker", "less_contrast", "fewer_levels",
    ),
    "weather": ("snow", "frost", "fog", "low_field"),
    "occlusion": ("spatter", "checkerboard_cutout", "sparkles", "inverse_sparkles"),
    "geometric": ("affine", "perspective", "shift"),
}  # fmt: skip
OTHER = "other"  # category of a corruption with an unknown name, which only files can hold


def category(name: str) -> str:
    """The category of a safe perturbation: a key of CATEGORIES, or "other"."""
    return next((kind for kind, names in CATEGORIES.items() if name in names), OTHER)


SUITES: dict[str, list[str]] = {
    suite: [name for name, entry in SAFE.items() if entry.suite == suite]
    for suite in ("C", "C-bar", "torchvision", "quick")
}


def versions(names: Iterable[str]) -> dict[str, int]:
    """Corruption -> its version, of suites and corruptions by name; those of the first version are left out.

    For hashes of runs.
    """
    every = sorted({name for given in names for name in SUITES.get(given, [given])})
    return {name: SAFE[name].version for name in every if SAFE[name].version > 1}
