"""Readers of corrupted test images in files, with one image for each test image.

CIFAR-10-C, CIFAR-100-C   <corruption>.npy, uint8 [severities * N, H, W, C], beside labels.npy, in the order of the set
ImageNet-C, 3DCC          [<kind>/]<corruption>/<severity>/<class>/<image>, paired by class and name
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

from datasets.decoding import read_picture
from datasets.identity import images_below
from foundations.digests import is_hidden
from foundations.errors import RunError, UsageError
from foundations.pixels import as_floats

if TYPE_CHECKING:
    from datasets.base import Dataset

Reader = Callable[[Tensor], Tensor]  # rows of the test split -> images [n,C,H,W] in [0, 1]


def read_corruption_files(
    folder: Path, shape: tuple[int, int, int], labels: Tensor, names: Sequence[str] = ()
) -> dict[str, dict[int, Reader]]:
    """Corruption -> severity -> reader, for test images of shape (C, H, W) with the given labels and names.

    Raises UsageError if there is no such folder, and RunError if its files do not match the test images.
    """
    if not folder.is_dir():
        raise UsageError(f"corrupted test images: expected the folder that they are in, got {folder}")
    found = _from_arrays(folder, shape, labels) or _from_folders(folder, shape, names)
    if not found:
        raise RunError(
            f"{folder}: expected <corruption>.npy with labels.npy, or <corruption>/<severity>/<class>/, got neither"
        )
    return found


def _from_arrays(folder: Path, shape: tuple[int, int, int], labels: Tensor) -> dict[str, dict[int, Reader]]:
    files = [file for file in sorted(folder.glob("*.npy")) if file.stem != "labels" and not is_hidden(file.name)]
    if not files:
        return {}
    count = len(labels)
    stored = _load(folder / "labels.npy")
    is_whole = stored.ndim == 1 and len(stored) and len(stored) % count == 0
    if not is_whole or (stored.reshape(-1, count) != labels.cpu().numpy()).any():
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
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise RunError(f"{file}: expected an array of numbers as numpy.save writes it") from error


def _array_reader(array: numpy.ndarray) -> Reader:
    def read(rows: Tensor) -> Tensor:
        return as_floats(torch.from_numpy(array[rows.cpu().numpy()]).permute(0, 3, 1, 2))

    return read


def _from_folders(folder: Path, shape: tuple[int, int, int], names: Sequence[str]) -> dict[str, dict[int, Reader]]:
    found: dict[str, dict[int, Reader]] = {}
    direct = sorted(folder.glob("*/[1-5]"))
    graded = {place.parent for place in direct}  # below these the folders are classes, whatever they are called
    places = [*direct, *(place for place in sorted(folder.glob("*/*/[1-5]")) if place.parents[1] not in graded)]
    for place in places:
        if any(is_hidden(part) for part in place.relative_to(folder).parts) or not place.is_dir():
            continue
        severities = found.setdefault(place.parent.name, {})
        if int(place.name) in severities:
            raise RunError(
                f"{folder}: expected one corruption of a name, got {place.parent.name} below several folders"
            )
        severities[int(place.name)] = _folder_reader(_paired(place, names), shape)
    return found


def _paired(place: Path, names: Sequence[str]) -> list[str]:
    """The corrupted version of every test image, in their order: the file of the same class and name but its suffix.

    Raises RunError if a test image has no version, or a file is no version of one; it names three of them.
    """
    images = images_below(place)[0]
    found = {f"{os.path.relpath(path, place).split(os.sep)[0]}/{Path(path).stem}": path for path in images}
    if len(found) < len(images):
        raise RunError(f"{place}: expected one file of a name in a class, whatever its suffix, got several")
    if found and (not names or len(set(names)) < len(names)):
        raise RunError(
            f"{place}: the test images have no names of their own, to pair these files with; use arrays (.npy)"
        )
    lacking = [name for name in names if name not in found]
    strangers = sorted(found.keys() - set(names))
    if lacking or strangers:
        told = [f"{len(lacking)} are missing ({', '.join(lacking[:3])})"] if lacking else []
        told += [f"{len(strangers)} belong to none ({', '.join(strangers[:3])})"] if strangers else []
        raise RunError(
            f"{place}: expected a file for each of the {len(names)} test images, by class and name; {'; '.join(told)}"
        )
    return [found[name] for name in names]


def names_of(data: Dataset) -> list[str]:
    """Class and name without suffix of every test image, in their order; [] if they are in no files of their own."""
    paths = getattr(data.test, "paths", [])
    labels = data.test.labels.tolist() if paths else []
    return [f"{data.info.classes[label]}/{Path(path).stem}" for path, label in zip(paths, labels, strict=True)]


def _folder_reader(files: Sequence[str], shape: tuple[int, int, int]) -> Reader:
    def one(file: str) -> Tensor:
        try:
            picture = read_picture(file).convert("L" if shape[0] == 1 else "RGB")
        except Exception as error:  # a damaged header can make the readers of formats raise anything
            raise RunError(f"cannot read {file}: {str(error) or type(error).__name__}") from error
        pixels = numpy.array(picture)
        image = torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1)
        if tuple(image.shape) != shape:
            raise RunError(f"{file}: expected an image of shape {shape}, got {tuple(image.shape)}")
        return as_floats(image)

    return lambda rows: torch.stack([one(files[row]) for row in rows.tolist()])
