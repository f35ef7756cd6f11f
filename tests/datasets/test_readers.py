"""Each reader of files, on small sets written in the true format: whole, cut short, empty, mislabelled."""

from __future__ import annotations

import io
import pickle
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from datasets.base import Split
from datasets.finding import fetch
from datasets.registry import DATASETS, load_dataset
from foundations.errors import RunError
from foundations.input_hparams import DatasetHparams
from tests.datasets import written


def own(name: str, **options: object) -> DatasetHparams:
    return DatasetHparams(dataset_name=name, own_files=True, **options)  # type: ignore[arg-type]


WRITERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "mnist": (written.write_mnist, "MNIST/raw"),
    "fashion_mnist": (written.write_mnist, "fashion-mnist"),
    "kmnist": (written.write_mnist, "KMNIST/raw"),
    "svhn": (written.write_svhn, "svhn"),
    "cifar10": (written.write_cifar10, "cifar-10-batches-py"),
    "cifar100": (written.write_cifar100, "cifar-100-python"),
    "stl10": (written.write_stl10, "stl10_binary"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_or_its_parent_is_found_and_read(name: str, tmp_path: Path) -> None:
    write, below = WRITERS[name]
    write(tmp_path / below)
    for folder in (tmp_path, tmp_path / below):
        data = load_dataset(own(name), folder)
        assert isinstance(data.train, Split)
        assert data.train.images.shape[1:] == DATASETS[name].shape
        assert set(data.test.labels.tolist()) == set(range(data.info.num_classes))


def test_pixels_and_labels_are_where_they_belong(tmp_path: Path) -> None:
    mnist = written.write_mnist(tmp_path / "mnist", compressed=False)
    data = load_dataset(own("mnist"), tmp_path / "mnist")
    assert data.train.read(torch.arange(30)).squeeze(1).equal(torch.from_numpy(mnist["train-images-idx3-ubyte"]))
    assert data.train.labels.tolist() == [i % 10 for i in range(30)]
    cifar = written.write_cifar10(tmp_path / "cifar")
    data = load_dataset(own("cifar10"), tmp_path / "cifar")
    assert data.train.read(torch.tensor([25]))[0].flatten().equal(torch.from_numpy(cifar["data_batch_2"][5]))
    assert data.train.labels[25] == 5
    svhn = written.write_svhn(tmp_path / "svhn")
    data = load_dataset(own("svhn"), tmp_path / "svhn")
    # X is [row, column, channel, number]; the label 10 of the file is the digit 0.
    assert data.train.read(torch.tensor([3]))[0].permute(1, 2, 0).equal(torch.from_numpy(svhn["train"][..., 3]))
    assert data.train.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    stl10 = written.write_stl10(tmp_path / "stl10")
    data = load_dataset(own("stl10"), tmp_path / "stl10")
    assert data.test.read(torch.tensor([2]))[0].equal(torch.from_numpy(stl10["test"][2]).transpose(1, 2))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, empty])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "train-images-idx3-ubyte.gz"),
        ("svhn", "test_32x32.mat"),
        ("cifar10", "data_batch_3"),
        ("cifar100", "test"),
        ("stl10", "train_X.bin"),
    ],
)
def test_damaged_files_are_named(name: str, file: str, harm: Callable[[Path], None], tmp_path: Path) -> None:
    WRITERS[name][0](tmp_path)
    harm(tmp_path / file)
    with pytest.raises(RunError, match=rf"{name}: cannot read .*{file}: .*undamaged copy"):
        load_dataset(own(name), tmp_path)


def test_mislabelled_files_are_refused(tmp_path: Path) -> None:
    written.write_cifar10(tmp_path)
    file = tmp_path / "test_batch"
    batch = pickle.loads(file.read_bytes())
    file.write_bytes(pickle.dumps({**batch, "labels": [10] * 20}, protocol=2))
    with pytest.raises(RunError, match=r"expected test labels in \[0, 10\), got 10 to 10"):
        load_dataset(own("cifar10"), tmp_path)
    file.write_bytes(pickle.dumps({**batch, "labels": [1] * 19}, protocol=2))
    with pytest.raises(RunError, match="test_batch: 20 images have 19 labels"):
        load_dataset(own("cifar10"), tmp_path)


def test_pickles_run_no_code(tmp_path: Path) -> None:
    written.write_cifar10(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(RunError, match=r"data_batch_1: it asks for os\.system"):
        load_dataset(own("cifar10"), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_other_than_the_published_files_are_refused_unless_they_are_meant(tmp_path: Path) -> None:
    written.write_cifar10(tmp_path)
    with pytest.raises(RunError, match=r"data_batch_1 is not the published file \(MD5 .*--own_files"):
        load_dataset("cifar10", tmp_path)
    written.write_mnist(tmp_path / "mnist", compressed=False)  # without checksums: their number tells
    with pytest.raises(RunError, match="expected 60,000 training images, got 30; add --own_files"):
        load_dataset("mnist", tmp_path)


def test_what_is_missing_is_listed(tmp_path: Path) -> None:
    written.write_cifar10(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(RunError, match=rf"cifar10 is not in {tmp_path}: expected data_batch_4 in it"):
        load_dataset("cifar10", tmp_path)


def test_a_failed_download_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.error

    import torchvision

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", offline)
    with pytest.raises(RunError, match=r"cifar10: cannot be downloaded into .*no route to host.*--data_dir=DIR"):
        load_dataset(DatasetHparams(dataset_name="cifar10", download=True), tmp_path)


def test_a_download_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def fetched(url: str, root: str, **_: object) -> None:
        written.write_cifar10(Path(root) / "cifar-10-batches-py")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fetched)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: (Path(self.root) / "x").exists())
    with pytest.raises(RunError, match=r"not the published file"):  # torchvision's own answer would name no file
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "__init__", lambda self, root, download: fetched("", root))
        load_dataset(DatasetHparams(dataset_name="cifar10", download=True), tmp_path)


@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs dataset-fashion-mnist")
def test_debians_fashion_mnist_is_the_published_one() -> None:
    data = load_dataset("fashion_mnist", Path("/usr/share/datasets"))
    assert data.train.labels.bincount().tolist() == [6000] * 10
    pixels = data.train.read(slice(None)).double() / 255
    assert [float(pixels.mean()), float(pixels.std())] == pytest.approx([0.2860, 0.3530], abs=1e-4)


def test_wrong_statistics_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    written.write_mnist(tmp_path, train=300, compressed=False)
    small = dataclasses.replace(DATASETS["mnist"], num_train=300, num_test=20)
    monkeypatch.setitem(DATASETS, "mnist", small)
    with pytest.raises(RunError, match=r"expected training pixels of mean \(0.1307,\), got \(0\.(49|50)"):
        load_dataset("mnist", tmp_path)


def test_cifar10_opens_quickly(tmp_path: Path) -> None:
    """A fifth of it in a fifth of the two seconds that the whole may take."""
    written.write_cifar10(tmp_path, per_batch=2000, test=2000)
    started = time.process_time()
    data = load_dataset(own("cifar10"), tmp_path)
    rows = data.train_rows()
    data.train.pixels(torch.arange(128))
    assert time.process_time() - started < 0.4
    assert [len(part) for part in rows.values()] == [1000] * 10


def test_synthetic_is_seeded_and_of_any_shape() -> None:
    made = {"synthetic_shape": "2x5x7", "synthetic_classes": 3, "synthetic_train": 31, "synthetic_test": 9}
    options = DatasetHparams(dataset_name="synthetic", **made)  # type: ignore[arg-type]
    data, again = load_dataset(options), load_dataset(options)
    assert data.train.read(slice(None)).shape == (31, 2, 5, 7)
    assert data.train.read(slice(None)).equal(again.train.read(slice(None)))
    other = DatasetHparams(dataset_name="synthetic", data_seed=1, **made)  # type: ignore[arg-type]
    assert not data.train.read(slice(None)).equal(load_dataset(other).train.read(slice(None)))


def test_subsets_and_random_labels() -> None:
    whole = load_dataset("mnist_5k")
    part = load_dataset(DatasetHparams(dataset_name="mnist_5k", subsample_fraction=0.1))
    assert part.train.labels.bincount().tolist() == [40] * 10
    assert part.test.labels.equal(whole.test.labels)
    noisy = load_dataset(DatasetHparams(dataset_name="mnist_5k", random_labels_fraction=0.5))
    assert noisy.train.read(slice(None)).equal(whole.train.read(slice(None)))
    changed = float((noisy.train.labels != whole.train.labels).float().mean())
    assert changed == pytest.approx(0.45, abs=0.03)  # a tenth of the drawn labels is right by chance
    assert not numpy.array_equal(
        noisy.train.labels,
        load_dataset(DatasetHparams(dataset_name="mnist_5k", random_labels_fraction=0.5, data_seed=1)).train.labels,
    )


def test_archives_cannot_write_outside_their_folder(tmp_path: Path) -> None:
    from torchvision.datasets.utils import extract_archive

    archive = tmp_path / "set.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        entry = tarfile.TarInfo("../outside")
        entry.size = 3
        file.addfile(entry, io.BytesIO(b"bad"))
    with pytest.raises(RunError, match=r"digits: cannot be downloaded into .*outside"):
        fetch("digits", lambda root: extract_archive(str(archive), str(root)), tmp_path / "data")
    assert not (tmp_path / "outside").exists()
