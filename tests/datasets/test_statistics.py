"""Mean and deviation of channels: published, or counted from the training images at hand."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

from datasets import statistics
from datasets.base import Dataset
from datasets.registry import dataset_info, load_dataset
from datasets.statistics import channel_statistics
from foundations.environment import Environment
from foundations.input_hparams import DatasetHparams
from tests.datasets import written

ALONE = Environment(root_dir=Path("/nowhere"), quiet=True)
FOLDER = DatasetHparams(dataset_name="image_folder", image_size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("folder")
    written.write_folders(path, train=7)
    return load_dataset(FOLDER, path)


def test_of_a_published_set_they_are_the_published_ones() -> None:
    info = dataset_info("digits")
    assert channel_statistics(load_dataset("digits"), DatasetHparams(dataset_name="digits"), ALONE) == (
        info.mean,
        info.std,
    )


def test_of_other_files_they_are_those_of_the_training_images(folder: Dataset) -> None:
    """Not those of ImageNet, which models of image folders normalise by."""
    pixels = folder.train.read(torch.arange(14)).numpy().astype(numpy.float64) / 255
    mean, deviation = channel_statistics(folder, FOLDER, ALONE)
    assert mean == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-12)
    assert deviation == pytest.approx(pixels.std((0, 2, 3)), abs=1e-12)
    own = DatasetHparams(dataset_name="digits", own_files=True)
    digits = load_dataset(own)
    counted = channel_statistics(digits, own, ALONE)
    assert counted[0] != digits.info.mean
    assert counted[0] == pytest.approx([float(digits.train.pixels(slice(None)).double().mean())], abs=1e-7)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_neither_parts_nor_processes_change_a_bit(folder: Dataset, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = channel_statistics(folder, FOLDER, ALONE)
    monkeypatch.setattr(statistics, "part_size", lambda shape: size)
    counts: list[numpy.ndarray] = []

    class Several(Environment):
        """A process of three that keeps what it would hand to the sum."""

        def all_reduce_sum(self, array: numpy.ndarray) -> numpy.ndarray:
            counts.append(array)
            return numpy.sum(counts, axis=0)

    for rank in range(3):
        found = channel_statistics(folder, FOLDER, Several(root_dir=Path("/nowhere"), rank=rank, world_size=3))
        assert (found == expected) == (rank == 2)
    assert [int(array.sum()) for array in counts] == [5 * 3 * 32 * 32, 5 * 3 * 32 * 32, 4 * 3 * 32 * 32]


def test_a_channel_that_is_the_same_everywhere_can_be_normalised(
    folder: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = folder.train.read
    monkeypatch.setattr(
        type(folder.train), "read", lambda _, rows: read(rows) * torch.tensor([1, 0, 1]).byte().view(-1, 1, 1)
    )
    mean, deviation = channel_statistics(folder, FOLDER, ALONE)
    assert (mean[1], deviation[1]) == (0, 1) and 0 < deviation[0] < 1
