"""Readers of corrupted test images in files, with one image for each test image, in the same order.

CIFAR-10-C, CIFAR-100-C   <corruption>.npy, uint8 [severities * N, H, W, C], beside labels.npy
ImageNet-C, 3DCC          [<kind>/]<corruption>/<severity>/<class>/<image>, classes and images in sorted order
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from torch import Tensor

from foundations.errors import RunError, UsageError

Reader = Callable[[Tensor], Tensor]  # rows of the test split -> images [n,C,H,W] in [0, 1]


def read_corruption_files(folder: Path, shape: tuple[int, int, int], labels: Tensor) -> dict[str, dict[int, Reader]]:
    """Corruption -> severity -> reader, for test images of shape (C, H, W) with the given labels.

    Raises UsageError if there is no such folder, and RunError if its files do not match the test images.
    """
    if not folder.is_dir():
        raise UsageError(f"--corruption_files: expected a folder, got {folder}")
    found = _from_arrays(folder, shape, labels) or _from_folders(folder, shape, labels)
    if not found:
        raise RunError(
            f"{folder}: expected <corruption>.npy with labels.npy, or <corruption>/<severity>/<class>/, got neither"
        )
    return found


def _from_arrays(folder: Path, shape: tuple[int, int, int], labels: Tensor) -> dict[str, dict[int, Reader]]:
    files = [file for file in sorted(folder.glob("*.npy")) if file.stem != "labels"]
    if not files:
        return {}
    count = len(labels)
    stored = _load(folder / "labels.npy").astype(numpy.int64)
    if not len(stored) or len(stored) % count or (stored.reshape(-1, count) != labels.cpu().numpy()).any():
        raise RunError(f"{folder / 'labels.npy'}: expected the labels of the {count} test images, once per severity")
    found: dict[str, dict[int, Reader]] = {}
    for file in files:
        array = _load(file)
        expected = (*shape[1:], shape[0])
        if array.dtype != numpy.uint8 or array.shape[1:] != expected or not len(array) or len(array) % count:
            raise RunError(
                f"{file}: expected uint8 [severities * {count}, {', '.join(map(str, expected))}], "
                f"got {array.dtype} {list(array.shape)}"
            )
        found[file.stem] = {
            number + 1: _array_reader(array[number * count : (number + 1) * count])
            for number in range(len(array) // count)
        }
    return found


def _load(file: Path) -> numpy.ndarray:
    """Open an array as a memory map, so that it stays on disk."""
    try:
        return numpy.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {file}: {error}") from error


def _array_reader(array: numpy.ndarray) -> Reader:
    def read(rows: Tensor) -> Tensor:
        return torch.from_numpy(array[rows.cpu().numpy()]).permute(0, 3, 1, 2).float() / 255

    return read


def _from_folders(folder: Path, shape: tuple[int, int, int], labels: Tensor) -> dict[str, dict[int, Reader]]:
    found: dict[str, dict[int, Reader]] = {}
    places = [*sorted(folder.glob("*/[1-5]")), *sorted(folder.glob("*/*/[1-5]"))]
    for place in places:
        classes = sorted(part for part in place.iterdir() if part.is_dir())
        images = [(file, label) for label, part in enumerate(classes) for file in sorted(part.iterdir())]
        if not images:
            continue
        if [label for _, label in images] != labels.tolist():
            raise RunError(
                f"{place}: expected {len(labels)} images in the classes of the test images, got {len(images)}"
            )
        found.setdefault(place.parent.name, {})[int(place.name)] = _folder_reader([file for file, _ in images], shape)
    return found


def _folder_reader(files: list[Path], shape: tuple[int, int, int]) -> Reader:
    from PIL import Image

    def one(file: Path) -> Tensor:
        try:
            with Image.open(file) as picture:
                pixels = numpy.array(picture.convert("L" if shape[0] == 1 else "RGB"))
        except OSError as error:
            raise RunError(f"cannot read {file}: {error}") from error
        image = torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1)
        if tuple(image.shape) != shape:
            raise RunError(f"{file}: expected an image of shape {shape}, got {tuple(image.shape)}")
        return image.float() / 255

    return lambda rows: torch.stack([one(files[row]) for row in rows.tolist()])
