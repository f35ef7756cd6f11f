"""Images in folders: decoded when asked for, class order by sorted names, damaged files named."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

from datasets.folders import FolderSplit
from datasets.loader import ReadBatch, ShuffledBatches
from datasets.read_ahead import read_ahead
from datasets.registry import dataset_info, load_dataset
from datasets.sampling import rows_by_class
from foundations.digests import forget
from foundations.environment import below_root
from foundations.errors import RunError, UsageError
from foundations.input_hparams import DatasetHparams
from tests.datasets import written
from tests.datasets.test_readers import own


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagenet")
    written.write_imagenet(folder)
    return folder


def test_imagenet_labels_are_places_among_the_sorted_ids(imagenet: Path) -> None:
    data = load_dataset(own("imagenet"), imagenet)
    ids = dataset_info("imagenet").classes
    assert list(ids) == sorted(ids) and len(ids) == 1000
    assert data.train.labels.unique().tolist() == [ids.index(name) for name in written.WORDNET_IDS] == [0, 1, 999]
    assert data.info.title(0) == "tench, Tinca tinca"
    for row in range(len(data.train)):
        assert ids[int(data.train.labels[row])] in data.train.paths[row]  # type: ignore[attr-defined]


def test_images_are_resized_and_cut_as_robustbench_does(imagenet: Path) -> None:
    from torchvision import transforms

    data = load_dataset(own("imagenet"), imagenet)
    assert isinstance(data.train, FolderSplit)
    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    image = Image.open(data.train.paths[4]).convert("RGB")
    assert data.train.pixels(torch.tensor([4]))[0].equal(theirs(image))


def test_nothing_is_decoded_before_it_is_asked_for(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = FolderSplit.decode
    monkeypatch.setattr(FolderSplit, "decode", lambda self, row: decoded.append(row) or decode(self, row))
    data = load_dataset(own("imagenet", image_size=32), imagenet)
    assert len(decoded) == 2  # one image of each split, for its shape
    assert [len(rows) for rows in data.train_rows().values()] == [6, 6, 6]
    assert len(decoded) == 2
    assert data.test.pixels(torch.tensor([5, 0])).shape == (2, 3, 32, 32)
    assert sorted(decoded[2:]) == [0, 5]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_of_files_are_those_of_memory(imagenet: Path, num_workers: int) -> None:
    split = load_dataset(own("imagenet", image_size=16), imagenet).train
    state = torch.get_rng_state()
    for rank in range(2):
        batches = ShuffledBatches(split, 4, seed=1, rank=rank, world_size=2, num_workers=num_workers)
        for batch in batches.epoch(0):
            assert isinstance(batch, ReadBatch)
            assert batch.images.equal(split.pixels(batch.index))
            assert batch.partner_images.equal(split.pixels(batch.partners))
    assert torch.get_rng_state().equal(state)


def cut_short(image: Path) -> Path:
    image.write_bytes(image.read_bytes()[:100])
    return image


def with_a_huge_size(image: Path) -> Path:
    """Four damaged bytes of a header: the reader refuses to unpack so many pixels."""
    content = bytearray(converted(image, "bmp").read_bytes())
    content[18:22] = (200000).to_bytes(4, "little")
    image.with_suffix(".bmp").write_bytes(content)
    return image.with_suffix(".bmp")


def with_a_damaged_tag(image: Path) -> Path:
    """One damaged byte: the place of the pixels is of the type text, which makes the reader raise a TypeError."""
    content = bytearray(converted(image, "tif").read_bytes())
    tags = int.from_bytes(content[4:8], "little")
    content[tags + 2 + 12 * 5 + 2] = 2
    image.with_suffix(".tif").write_bytes(content)
    return image.with_suffix(".tif")


def converted(image: Path, suffix: str) -> Path:
    Image.open(image).resize((16, 16)).save(image.with_suffix(f".{suffix}"))
    image.unlink()
    return image.with_suffix(f".{suffix}")


@pytest.mark.parametrize("damage", [cut_short, with_a_huge_size, with_a_damaged_tag])
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_image_is_named(tmp_path: Path, num_workers: int, damage: Callable[[Path], Path]) -> None:
    written.write_folders(tmp_path)
    file = damage(tmp_path / "train" / "dog" / "3.png")
    split = load_dataset(own("image_folder", image_size=16), tmp_path).train
    with pytest.raises(RunError, match=rf"^image_folder: cannot read {file}: .*undamaged copy$") as told:
        for batch in ShuffledBatches(split, 4, seed=1, num_workers=num_workers).epoch(0):
            batch.images.sum()
    assert str(told.value).count("\n") == 0
    assert not multiprocessing.active_children()  # while the error, with its traceback, is still there


def test_workers_get_nothing_that_is_on_a_gpu() -> None:
    """A forked process cannot use CUDA, and one that is spawned would be sent the labels."""

    class OnCpu:
        def decode(self, row: int) -> torch.Tensor:
            return torch.full((1, 2, 2), row, dtype=torch.uint8)

    class OnGpu:
        device = torch.device("cpu")  # of the images that the reader returns

        def to(self, device: torch.device) -> OnCpu:
            assert device.type == "cpu"
            return OnCpu()

    split: Any = OnGpu()
    (images,) = read_ahead(split, [torch.tensor([3, 1])], 0)
    assert images[:, 0, 0, 0].tolist() == [3, 1]


def test_workers_end_with_their_reader(tmp_path: Path) -> None:
    """They ignore SIGTERM; a reader that stops half-way, or loses one of them, must not wait for them."""
    written.write_folders(tmp_path)
    split = load_dataset(own("image_folder", image_size=16), tmp_path).train
    plans = [torch.tensor([0, 1])] * 8
    images = read_ahead(split, plans, 2)
    next(images)
    assert len(multiprocessing.active_children()) == 2
    images.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
    images = read_ahead(split, plans, 1)
    next(images)
    # torch notices it by a signal, and raises its error wherever this process is at that moment.
    with pytest.raises(
        RuntimeError, match=r"a process that reads images ended .*lack of memory|DataLoader worker .*killed"
    ):
        for worker in multiprocessing.active_children():
            worker.kill()
        for _ in images:
            pass


def _sort_into_folders(annotations: Path, folder: Path) -> None:
    """The layout val/<WordNet id>/* that people make of the archive's."""
    shutil.copytree(annotations.parents[1], folder, ignore=shutil.ignore_patterns("val"))
    for line in annotations.read_text().splitlines():
        name, label, *_ = line.split("\t")
        (folder / "val" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(annotations.parent / "images" / name, folder / "val" / label / name)


def test_tinyimagenet_reads_its_annotations(tmp_path: Path) -> None:
    written.write_tinyimagenet(tmp_path / "tiny-imagenet-200")
    data = load_dataset(own("tinyimagenet"), tmp_path)
    assert data.info.classes == tuple(sorted(written.WORDNET_IDS))
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.train.labels.bincount().tolist() == [4, 4, 4]
    annotations = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    _sort_into_folders(annotations, tmp_path / "sorted" / "tiny-imagenet-200")
    again = load_dataset(own("tinyimagenet"), tmp_path / "sorted").test
    assert again.labels.tolist() == data.test.labels.tolist()  # row numbers mean the same images in both layouts
    assert torch.equal(again.read(slice(None)), data.test.read(slice(None)))
    annotations.write_text(annotations.read_text().replace("n01440764", "n99999999"))
    with pytest.raises(RunError, match=r"val_annotations.txt: line 1: expected a name and a known WordNet id"):
        load_dataset(own("tinyimagenet"), tmp_path)


def test_image_folders_take_any_classes_and_sizes(tmp_path: Path) -> None:
    written.write_folders(tmp_path, ("b", "a", "c"))
    data = load_dataset(DatasetHparams(dataset_name="image_folder"), tmp_path)
    assert data.info.classes == ("a", "b", "c")
    assert data.train.pixels(torch.tensor([0])).shape == (1, 3, 64, 64)
    (tmp_path / "test" / "d").mkdir()
    with pytest.raises(RunError, match=r"test/d is no class of the set"):
        load_dataset(DatasetHparams(dataset_name="image_folder"), tmp_path)


def test_missing_classes_are_told(imagenet: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"997 of 1000 classes are missing in .*, the first is n01484850"):
        load_dataset("imagenet", imagenet)
    (tmp_path / "train").mkdir()
    written.write_image(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", 40, 40)
    with pytest.raises(RunError, match=r"expected folders named by WordNet ids such as n01440764"):
        load_dataset("imagenet", tmp_path)


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm"])
def test_two_sets_that_differ_in_one_pixel_are_two(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGB", (8, 8))
    for part, names in (("train", "ab"), ("test", "a")):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            image.save(tmp_path / part / name / f"0.{suffix}")
    first = identity(tmp_path)
    image.putpixel((3, 3), (0, 0, 1))
    image.save(tmp_path / "train" / "b" / f"0.{suffix}")
    assert identity(tmp_path) != first
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "b" / f"0.{suffix}")
    assert identity(tmp_path) == first


def identity(data_dir: Path | str, **options: Any) -> str:
    forget()
    options = {"dataset_name": "image_folder", **options}
    return DatasetHparams(data_dir=str(data_dir), **options).hashed()["data_dir"]


def test_only_what_is_read_counts_and_wherever_it_is_found(tmp_path: Path) -> None:
    written.write_folders(tmp_path / "image_folder")
    place = tmp_path / "image_folder"
    known = identity(place)
    for name in ("notes.txt", "train/.DS_Store", "train/dog/readme.txt", "train/dog/._0.png", "extra/0.png"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("x")
        assert identity(place) == known, name
    (tmp_path / "unrelated").write_text("x")
    assert identity(tmp_path) == known
    shutil.copytree(place, tmp_path / "root" / "data" / "image_folder")
    with below_root(str(tmp_path / "root")):
        assert identity("") == known
        (tmp_path / "root" / "data" / "image_folder" / "train" / "dog" / "0.png").unlink()
        assert identity("") != known
    with below_root(str(tmp_path / "nowhere")), pytest.raises(RunError, match=r"image_folder is not in .*nowhere/data"):
        identity("")
    with pytest.raises(UsageError, match=r"--data_dir: cannot read .*nowhere: not there"):
        identity(tmp_path / "nowhere")
    (place / "train" / "dog" / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"--data_dir: cannot read .*train/dog/gone.png: No such file"):
        identity(place)


def test_classes_that_are_links_are_hashed_as_they_are_read(tmp_path: Path) -> None:
    found = []
    for name in ("first", "second"):
        written.write_folders(tmp_path / name)
        links = tmp_path / f"links_{name}"
        for part in ("train", "test"):
            (links / part).mkdir(parents=True)
            for title in ("cat", "dog"):
                (links / part / title).symlink_to(tmp_path / name / part / title)
        assert identity(links) == identity(tmp_path / name)
        assert len(load_dataset(DatasetHparams(dataset_name="image_folder"), links).train) == 16
        found.append(identity(links))
    assert found[0] != found[1]


def test_files_of_a_published_form(tmp_path: Path) -> None:
    place = tmp_path / "cifar-10-batches-py"
    written.write_cifar10(place)
    known = identity(tmp_path, dataset_name="cifar10", own_files=True)
    (place / "readme.html").write_text("x")
    assert identity(place, dataset_name="cifar10", own_files=True) == known
    content = bytearray((place / "data_batch_3").read_bytes())
    content[-500] ^= 1
    (place / "data_batch_3").write_bytes(content)
    assert identity(tmp_path, dataset_name="cifar10", own_files=True) != known
    assert "data_dir" not in DatasetHparams(dataset_name="cifar10", data_dir=str(tmp_path)).hashed()


def test_names_of_files_are_those_of_torchvision() -> None:
    sets = torchvision.datasets
    for name, kind in (("mnist", sets.MNIST), ("fashion_mnist", sets.FashionMNIST), ("kmnist", sets.KMNIST)):
        assert {f"{file}.gz" for file in dataset_info(name).files} == {file for file, _ in kind.resources}
        assert dataset_info(name).folders[0] == f"{kind.__name__}/raw" and dataset_info(name).compressed
    for name, kind in (("cifar10", sets.CIFAR10), ("cifar100", sets.CIFAR100), ("stl10", sets.STL10)):
        listed = [file for file, _ in (*kind.train_list, *kind.test_list) if file != "unlabeled_X.bin"]
        assert list(dataset_info(name).files) == listed
        assert dataset_info(name).folders == (kind.base_folder,)
    assert dataset_info("svhn").files == tuple(sets.SVHN.split_list[part][1] for part in ("train", "test"))


def test_compressed_files_are_taken_only_where_they_can_be_read(tmp_path: Path) -> None:
    written.write_cifar10(tmp_path)
    batch = tmp_path / "data_batch_1"
    (tmp_path / "data_batch_1.gz").write_bytes(b"not the batch")
    assert len(load_dataset(own("cifar10"), tmp_path).train) == 100
    batch.unlink()
    with pytest.raises(RunError, match="expected data_batch_1 in it"):
        load_dataset(own("cifar10"), tmp_path)


def test_hidden_files_and_other_suffixes_are_no_images(tmp_path: Path) -> None:
    written.write_folders(tmp_path)
    for name in (".ipynb_checkpoints/0.png", "._0.png", "__MACOSX/1.png", "@eaDir/2.png"):
        (tmp_path / "train" / "cat" / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "train" / "dog" / "0.png", tmp_path / "train" / "cat" / name)
    data = load_dataset(DatasetHparams(dataset_name="image_folder"), tmp_path)
    assert data.train.labels.bincount().tolist() == [8, 8] and data.notes == ()
    for number in (3, 4):
        (tmp_path / "train" / "dog" / f"{number}.png").rename(tmp_path / "train" / "dog" / f"{number}.gif")
    (note,) = load_dataset(DatasetHparams(dataset_name="image_folder"), tmp_path).notes
    assert note.startswith(
        f"2 files of the training set were left out, the first is {tmp_path}/train/dog/3.gif: images"
    )
    for file in (tmp_path / "test" / "dog").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(
        RunError, match=r"expected images \(.png|.*in .*test/dog, got 4 other files, the first is 0.heic"
    ):
        load_dataset(DatasetHparams(dataset_name="image_folder"), tmp_path)


def test_one_class_is_refused(tmp_path: Path) -> None:
    written.write_folders(tmp_path, ("only",))
    with pytest.raises(RunError, match=r"expected a folder for each of two or more classes in .*train, got only alone"):
        load_dataset(DatasetHparams(dataset_name="image_folder"), tmp_path)


def test_classes_are_found_by_one_sort() -> None:
    labels = torch.tensor([2, 0, 2, -1, 5, 0])
    rows = rows_by_class(labels)
    assert {label: part.tolist() for label, part in rows.items()} == {0: [1, 5], 2: [0, 2], 5: [4]}


def test_what_enters_no_figure_is_told(tmp_path: Path) -> None:
    """An empty folder of test images is refused; one that is not there at all passed without a word."""
    written.write_folders(tmp_path)
    shutil.copy(tmp_path / "train" / "dog" / "0.png", tmp_path / "train" / "stray.png")
    (tmp_path / "train" / "readme.txt").write_text("no image")
    shutil.rmtree(tmp_path / "test" / "dog")
    notes = load_dataset(DatasetHparams(dataset_name="image_folder"), tmp_path).notes
    assert notes == (
        f"1 images in {tmp_path}/train lie in no class folder and were left out: stray.png",
        f"1 of 2 classes have no folder in {tmp_path}/test and enter no test figure, the first is dog",
    )
