"""Image files as 8-bit colour pictures.

16-bit grey is divided by 65535, floating-point values in [0, 1] are taken as they are, and both are rounded to 8 bits;
transparent pictures are laid on white. The orientation that a camera notes (EXIF) is not applied, as torchvision does
not; other kinds of numbers are refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image

WHITE = (255, 255, 255, 255)
DEEP = 65535  # the largest value of 16 bits


def read_picture(path: Path | str) -> Image.Image:
    """The picture of a file in the mode RGB; raises the errors of Pillow, and ValueError for values out of range."""
    with Image.open(path) as picture:
        if picture.mode.startswith("I"):
            return _grey(numpy.asarray(picture, dtype=numpy.float64), DEEP, picture.mode)
        if picture.mode == "F":
            return _grey(numpy.asarray(picture, dtype=numpy.float64), 1, picture.mode)
        if picture.has_transparency_data:
            over = picture.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", over.size, WHITE), over).convert("RGB")
        return picture.convert("RGB")


def _grey(values: numpy.ndarray, largest: int, mode: str) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= largest):  # refuses NaN too
        raise ValueError(f"expected values in [0, {largest}] of pixels of mode {mode}, got {low:g} to {high:g}")
    return Image.fromarray((values * (255 / largest)).round().astype(numpy.uint8)).convert("RGB")
