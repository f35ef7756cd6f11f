"""Data sets of torchvision, with its file names, checksums, downloads and readers; images in memory as uint8."""

from __future__ import annotations

import gzip
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
import torchvision

from datasets.base import Dataset, Split
from datasets.finding import check_file, damaged, file_in, find_folder
from datasets.info import DatasetInfo
from foundations.input_hparams import DatasetHparams

CLASSES: dict[str, Any] = {
    "mnist": torchvision.datasets.MNIST,
    "fashion_mnist": torchvision.datasets.FashionMNIST,
    "kmnist": torchvision.datasets.KMNIST,
    "svhn": torchvision.datasets.SVHN,
    "cifar10": torchvision.datasets.CIFAR10,
    "cifar100": torchvision.datasets.CIFAR100,
    "stl10": torchvision.datasets.STL10,
}
# MD5 of the files in Debian's package dataset-fashion-mnist: the published ones without file names in the gzip headers.
RECOMPRESSED = (
    "cf8536b0aa1a6ac5fa3f23001093305c",
    "f78720b4224f21cce2f2ccf2d7a94c9a",
    "0d30e22e447f3c33dab9ed536400ac01",
    "10bea18fdb374794d4bb42e356e600c9",
)
# Exceptions that the readers raise for a damaged file.
FAILURES = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    AssertionError,
    RuntimeError,
    MemoryError,
    pickle.UnpicklingError,
)


def found_in(folder: Path, name: str, info: DatasetInfo) -> Path:
    """The path of a file that `find_folder` has found."""
    path = file_in(folder, name, info)
    assert path is not None
    return path


def load_mnist(dataset: DatasetHparams, info: DatasetInfo, data_dir: Path | None) -> Dataset:
    """Load the idx files of MNIST, Fashion-MNIST or KMNIST, compressed or not; only compressed ones have an MD5."""
    source = CLASSES[dataset.dataset_name]
    checksums = {name.removesuffix(".gz"): md5 for name, md5 in source.resources}
    folder = find_folder(dataset, info, data_dir, lambda root: source(root=str(root), download=True))

    def read(name: str, reader: Any) -> torch.Tensor:
        path = found_in(folder, name, info)
        check_file(dataset, path, *([checksums[name], *RECOMPRESSED] if path.suffix == ".gz" else ()))
        try:
            if path.suffix != ".gz":
                return reader(str(path))
            with tempfile.NamedTemporaryFile() as plain:
                plain.write(gzip.decompress(path.read_bytes()))
                plain.flush()
                return reader(plain.name)
        except FAILURES as error:
            raise damaged(dataset, path, error) from error

    def split(kind: str) -> Split:
        images = read(f"{kind}-images-idx3-ubyte", torchvision.datasets.mnist.read_image_file)
        return Split(images.unsqueeze(1), read(f"{kind}-labels-idx1-ubyte", torchvision.datasets.mnist.read_label_file))

    return Dataset(dataset.dataset_name, info, split("train"), split("t10k"))


class ArraysOnly(pickle.Unpickler):
    """An unpickler that loads only NumPy arrays, as in CIFAR's files, since a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
        # Python 3 pickles bytes for Python 2 as text with a call of _codecs.encode.
        if (module.split(".")[0] == "numpy" and name in allowed) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of images needs")


def load_cifar(dataset: DatasetHparams, info: DatasetInfo, data_dir: Path | None) -> Dataset:
    """Load the Python version of CIFAR-10 or CIFAR-100 (fine labels)."""
    source = CLASSES[dataset.dataset_name]
    listed = {"train": source.train_list, "test": source.test_list}
    folder = find_folder(dataset, info, data_dir, lambda root: source(root=str(root), download=True))

    def read(name: str, md5: str) -> tuple[numpy.ndarray, list[int]]:
        path = found_in(folder, name, info)
        check_file(dataset, path, md5)
        try:
            with open(path, "rb") as file:
                content = ArraysOnly(file, encoding="latin1").load()
            images, labels = content["data"].reshape(-1, *info.shape), content.get("labels", content.get("fine_labels"))
            if len(images) != len(labels):
                raise ValueError(f"{len(images)} images have {len(labels)} labels")
            return images, labels
        except (*FAILURES, AttributeError) as error:
            raise damaged(dataset, path, error) from error

    def split(kind: str) -> Split:
        images, labels = zip(*(read(name, md5) for name, md5 in listed[kind]), strict=True)
        return Split(
            torch.from_numpy(numpy.concatenate(images)), torch.tensor([label for part in labels for label in part])
        )

    return Dataset(dataset.dataset_name, info, split("train"), split("test"))


def load_svhn(dataset: DatasetHparams, info: DatasetInfo, data_dir: Path | None) -> Dataset:
    """Load the cropped digits of SVHN, without the extra training images; the files' label 10 is the digit 0."""
    source = CLASSES["svhn"]
    listed = {kind: source.split_list[kind] for kind in ("train", "test")}

    def download(root: Path) -> None:
        for kind in listed:
            source(root=str(root), split=kind, download=True)

    folder = find_folder(dataset, info, data_dir, download)

    def split(kind: str) -> Split:
        url, name, md5 = listed[kind]
        check_file(dataset, folder / name, md5)
        unchecked = type("SVHN", (source,), {"split_list": {kind: [url, name, None]}})
        try:
            read = unchecked(root=str(folder), split=kind)
        except FAILURES as error:
            raise damaged(dataset, folder / name, error) from error
        return Split(
            torch.from_numpy(numpy.ascontiguousarray(read.data)), torch.from_numpy(numpy.atleast_1d(read.labels))
        )

    return Dataset(dataset.dataset_name, info, split("train"), split("test"))


def load_stl10(dataset: DatasetHparams, info: DatasetInfo, data_dir: Path | None) -> Dataset:
    """Load the labelled images of STL-10."""
    source = CLASSES["stl10"]
    listed = {"train": source.train_list[:2], "test": source.test_list}
    folder = find_folder(dataset, info, data_dir, lambda root: source(root=str(root), download=True))

    def split(kind: str) -> Split:
        for name, md5 in listed[kind]:
            check_file(dataset, folder / name, md5)
        unchecked: dict[str, Any] = {"base_folder": "", "train_list": [], "test_list": []}
        unchecked[f"{kind}_list"] = [[name, None] for name, _ in listed[kind]]
        try:
            read = type("STL10", (source,), unchecked)(root=str(folder), split=kind)
        except FAILURES as error:
            raise damaged(dataset, folder / listed[kind][0][0], error) from error
        return Split(torch.from_numpy(read.data.copy()), torch.from_numpy(read.labels.astype(numpy.int64)))

    return Dataset(dataset.dataset_name, info, split("train"), split("test"))
