"""Write a small set of colour images: patches of eight photographs that foolbox ships; a class is a photograph.

python benchmarks/photograph_patches.py FOLDER     then --dataset_name=image_folder --data_dir=FOLDER --image_size=32

Each photograph is a checkerboard of tiles; training patches lie in the one colour, test patches in the other: they
share no pixel.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy
from PIL import Image

PHOTOGRAPHS = 8
TILE, PATCH = 56, 32
PATCHES = {"train": 300, "test": 60}  # of each class


def corners(rng: numpy.random.Generator, count: int, tiles: int, colour: int) -> list[tuple[int, int]]:
    """Upper left corners of distinct patches, each within a tile of one colour."""
    found: dict[tuple[int, int], None] = {}
    while len(found) < count:
        row, column = rng.integers(tiles, size=2)
        if (row + column) % 2 == colour:
            down, right = rng.integers(TILE - PATCH + 1, size=2)
            found[int(row * TILE + down), int(column * TILE + right)] = None
    return list(found)


def write(folder: Path) -> None:
    spec = importlib.util.find_spec("foolbox")
    if spec is None or spec.origin is None:
        sys.exit("expected foolbox, whose photographs these are; pip install foolbox")
    files = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))[:PHOTOGRAPHS]
    for label, file in enumerate(files):
        pixels = numpy.asarray(Image.open(file).convert("RGB"))
        rng = numpy.random.default_rng(label)
        for colour, (split, count) in enumerate(PATCHES.items()):
            place = folder / split / file.stem
            place.mkdir(parents=True, exist_ok=True)
            for number, (top, left) in enumerate(corners(rng, count, len(pixels) // TILE, colour)):
                patch = pixels[top : top + PATCH, left : left + PATCH]
                Image.fromarray(patch).save(place / f"{number:03d}.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(Path(sys.argv[1]))
