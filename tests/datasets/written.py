"""Small data sets in the formats of the published ones, with random content."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy
from PIL import Image

RNG = numpy.random.default_rng(0)
WORDNET_IDS = ("n01440764", "n01443537", "n15075141")  # the first, the second and the last class of ImageNet


def images(count: int, *shape: int) -> numpy.ndarray:
    return RNG.integers(0, 256, (count, *shape), dtype=numpy.uint8)


def idx(array: numpy.ndarray) -> bytes:
    """The format of MNIST: magic number, big-endian sizes, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_mnist(folder: Path, train: int = 30, test: int = 20, compressed: bool = True) -> dict[str, numpy.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    content = {}
    for kind, count in (("train", train), ("t10k", test)):
        content[f"{kind}-images-idx3-ubyte"] = images(count, 28, 28)
        content[f"{kind}-labels-idx1-ubyte"] = (numpy.arange(count) % 10).astype(numpy.uint8)
    for name, array in content.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return content


def write_cifar10(folder: Path, per_batch: int = 20, test: int = 20) -> dict[str, numpy.ndarray]:
    """Pickles with their real keys, as Python 2 wrote them."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        count = test if name == "test_batch" else per_batch
        content[name] = images(count, 3072)
        batch = {
            "batch_label": name,
            "labels": [i % 10 for i in range(count)],
            "data": content[name],
            "filenames": [f"{i}.png" for i in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return content


def write_cifar100(folder: Path, train: int = 200, test: int = 100) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("test", test)):
        batch = {
            "filenames": [f"{i}.png" for i in range(count)],
            "batch_label": f"{name} batch 1 of 1",
            "fine_labels": [i % 100 for i in range(count)],
            "coarse_labels": [i % 20 for i in range(count)],
            "data": images(count, 3072),
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_svhn(folder: Path, train: int = 30, test: int = 20) -> dict[str, numpy.ndarray]:
    """MATLAB files: X [32,32,3,N], y [N,1] with 10 for the digit 0."""
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    content = {}
    for kind, count in (("train", train), ("test", test)):
        content[kind] = images(32, 32, 3, count)
        labels = (numpy.arange(count) % 10 + 1).astype(numpy.uint8).reshape(-1, 1)
        savemat(folder / f"{kind}_32x32.mat", {"X": content[kind], "y": labels})
    return content


def write_stl10(folder: Path, train: int = 20, test: int = 20) -> dict[str, numpy.ndarray]:
    """Raw bytes, [N,3,column,row], and labels from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {}
    for kind, count in (("train", train), ("test", test)):
        content[kind] = images(count, 3, 96, 96)
        (folder / f"{kind}_X.bin").write_bytes(content[kind].tobytes())
        (folder / f"{kind}_y.bin").write_bytes((numpy.arange(count) % 10 + 1).astype(numpy.uint8).tobytes())
    return content


def write_image(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(images(4, 4, 3))
    coarse.resize((width, height), Image.Resampling.BILINEAR).save(path)


def write_imagenet(folder: Path, train: int = 6, test: int = 3, ids: Sequence[str] = WORDNET_IDS) -> None:
    """JPEGs of several sizes, in folders named by WordNet ids."""
    for part, count in (("train", train), ("val", test)):
        for name in ids:
            for i in range(count):
                file = f"{name}_{i}.JPEG" if part == "train" else f"ILSVRC2012_val_{i:08d}.JPEG"
                write_image(folder / part / name / file, 60 + 7 * i, 80)


def write_tinyimagenet(folder: Path, train: int = 4, test: int = 6, ids: Sequence[str] = WORDNET_IDS) -> None:
    for name in ids:
        for i in range(train):
            write_image(folder / "train" / name / "images" / f"{name}_{i}.JPEG", 64, 64)
    lines = []
    for i in range(test):
        write_image(folder / "val" / "images" / f"val_{i}.JPEG", 64, 64)
        lines.append(f"val_{i}.JPEG\t{ids[i % len(ids)]}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(reversed(ids)) + "\n")


def write_folders(folder: Path, classes: Sequence[str] = ("cat", "dog"), train: int = 8, test: int = 4) -> None:
    for part, count in (("train", train), ("test", test)):
        for name in classes:
            for i in range(count):
                write_image(folder / part / name / f"{i}.png", 32, 40)
