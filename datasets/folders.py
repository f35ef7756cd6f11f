"""Data sets of image files in one folder for each class; images are read from disk when needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import functional

from datasets import class_names
from datasets.base import Dataset
from datasets.decoding import read_picture
from datasets.finding import damaged, find_folder
from datasets.identity import IMAGE_SUFFIXES, images_below
from datasets.info import DatasetInfo
from foundations.digests import is_hidden
from foundations.errors import RunError
from foundations.input_hparams import DatasetHparams
from foundations.pixels import as_floats
from foundations.text_files import read_text

READERS = 4  # threads that decode the images of one call of `read`
TINY_URL, TINY_MD5 = "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"


@dataclass(frozen=True)
class FolderSplit:
    """Image files with labels. An image is resized to a shorter side of `shorter` pixels, then cropped at its centre.

    paths    [N] complete paths of the files
    labels   [N] int64
    side     height and width of the resulting images, 3 x side x side
    skipped  files in the class folders that are no images
    """

    dataset: DatasetHparams
    paths: Sequence[str]
    labels: Tensor
    side: int
    shorter: int
    device: torch.device = torch.device("cpu")
    skipped: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, row: int) -> Tensor:
        """Read one image, [3, side, side] uint8; raises RunError for a damaged file."""
        path = self.paths[row]
        try:
            image = read_picture(path)
        except Exception as error:  # a damaged header can make the readers of formats raise anything
            raise damaged(self.dataset, Path(path), str(error) or type(error).__name__) from error
        if min(image.size) != self.shorter:
            image = functional.resize(image, self.shorter)
        return functional.pil_to_tensor(functional.center_crop(image, [self.side, self.side]))

    def read(self, index: Tensor | slice) -> Tensor:
        rows = (torch.arange(len(self))[index] if isinstance(index, slice) else index).tolist()
        with ThreadPoolExecutor(READERS) as readers:
            images = list(readers.map(self.decode, rows))
        return torch.stack(images) if images else torch.empty(0, 3, self.side, self.side, dtype=torch.uint8)

    def pixels(self, index: Tensor | slice) -> Tensor:
        return as_floats(self.read(index).to(self.device))

    def contents(self, index: Tensor) -> Iterator[bytes]:
        return (Path(self.paths[row]).read_bytes() for row in index.tolist())

    def subset(self, rows: Tensor) -> FolderSplit:
        return dataclasses.replace(self, paths=[self.paths[row] for row in rows.tolist()], labels=self.labels[rows])

    def relabelled(self, labels: Tensor) -> FolderSplit:
        return dataclasses.replace(self, labels=labels)

    def to(self, device: torch.device) -> FolderSplit:
        return dataclasses.replace(self, labels=self.labels.to(device), device=device)


def load_image_folder(dataset: DatasetHparams, info: DatasetInfo, data_dir: Path | None) -> Dataset:
    """Load a user's own images in DIR/train/<class>/* and DIR/test/<class>/*.

    The labels are numbered by the sorted names of the training folders.
    """
    folder = find_folder(dataset, info, data_dir)
    classes = _folders(folder / "train")
    if len(classes) < 2:
        found = f"got {classes[0]} alone" if classes else "got none"
        raise RunError(
            f"image_folder: expected a folder for each of two or more classes in {folder / 'train'}, {found}"
        )
    info = dataclasses.replace(info, classes=classes)
    data = _dataset(dataset, info, *(_split(dataset, info, folder / part) for part in ("train", "test")))
    return dataclasses.replace(data, notes=(*data.notes, *_left_out(folder, data)))


def _left_out(folder: Path, data: Dataset) -> list[str]:
    """In words, what of a user's folder enters no figure: images in no class folder, classes without test images."""
    notes = []
    for part in ("train", "test"):
        stray = sorted(file.name for file in (folder / part).iterdir() if _is_image(file))
        if stray:
            notes.append(f"{len(stray)} images in {folder / part} lie in no class folder and were left out: {stray[0]}")
    tested = set(data.test.labels.tolist())
    untested = [name for label, name in enumerate(data.info.classes) if label not in tested]
    if untested:
        notes.append(
            f"{len(untested)} of {data.info.num_classes} classes have no folder in {folder / 'test'} and enter no test "
            f"figure, the first is {untested[0]}"
        )
    return notes


def _is_image(file: Path) -> bool:
    return file.is_file() and file.name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(file.name)


def load_imagenet(dataset: DatasetHparams, info: DatasetInfo, data_dir: Path | None) -> Dataset:
    """Load ImageNet from DIR/train/<WordNet id>/* and DIR/val/<WordNet id>/*.

    A label is the position of the id among all 1,000 sorted ids. With --own_files some classes may be missing, which
    does not change the labels of the others.
    """
    folder = find_folder(dataset, info, data_dir)
    _check_ids(dataset, info, folder / "train")
    _check_ids(dataset, info, folder / "val")
    titles = class_names.wordnet_titles()
    info = dataclasses.replace(info, titles=tuple(titles.get(name, name) for name in info.classes))
    return _dataset(dataset, info, *(_split(dataset, info, folder / part) for part in ("train", "val")))


def load_tinyimagenet(dataset: DatasetHparams, info: DatasetInfo, data_dir: Path | None) -> Dataset:
    """Load Tiny ImageNet from its archive's layout, or with val/<WordNet id>/* if val_annotations.txt is missing.

    The archive has train/<WordNet id>/images/*, val/images/* with val/val_annotations.txt, and the ids in wnids.txt.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    folder = find_folder(
        dataset, info, data_dir, lambda root: download_and_extract_archive(TINY_URL, str(root), md5=TINY_MD5)
    )
    classes = tuple(sorted(read_text(folder / "wnids.txt").split()))
    if len(classes) != 200 and not dataset.own_files:
        raise damaged(dataset, folder / "wnids.txt", f"expected 200 ids, got {len(classes)}")
    titles = class_names.wordnet_titles()
    info = dataclasses.replace(info, classes=classes, titles=tuple(titles.get(name, name) for name in classes))
    _check_ids(dataset, info, folder / "train")
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file():
        test = _in_order_of_names(_split(dataset, info, folder / "val"))
    else:
        test = _annotated(dataset, info, annotations)
    return _dataset(dataset, info, _split(dataset, info, folder / "train"), test)


def _in_order_of_names(split: FolderSplit) -> FolderSplit:
    """The order of the archive's list (val_0.JPEG to val_9999.JPEG), so that row numbers mean the same images."""
    names = [Path(path).name for path in split.paths]
    order = sorted(range(len(names)), key=lambda row: (len(names[row]), names[row]))
    paths = [split.paths[row] for row in order]
    return dataclasses.replace(split, paths=paths, labels=split.labels[torch.tensor(order, dtype=torch.int64)])


def _annotated(dataset: DatasetHparams, info: DatasetInfo, annotations: Path) -> FolderSplit:
    """The images in images/ that a file beside it lists in lines `name <tab> WordNet id <tab> ...`, in its order."""
    numbers = {name: label for label, name in enumerate(info.classes)}
    paths, labels = [], []
    for count, line in enumerate(read_text(annotations).splitlines(), 1):
        if not line.strip():
            continue
        name, _, rest = line.partition("\t")
        label = rest.split("\t")[0].strip()
        if label not in numbers:
            raise damaged(dataset, annotations, f"line {count}: expected a name and a known WordNet id, got {line!r}")
        paths.append(str(annotations.parent / "images" / name))
        labels.append(numbers[label])
    return _made(dataset, info, paths, labels)


def _split(dataset: DatasetHparams, info: DatasetInfo, folder: Path) -> FolderSplit:
    """All images in the class folders of a folder; raises RunError for an unknown class, and for one without images."""
    present = _folders(folder)
    strangers = sorted(set(present) - set(info.classes))
    if strangers:
        raise RunError(f"{dataset.dataset_name}: {folder / strangers[0]} is no class of the set; remove the folder")
    paths: list[str] = []
    labels: list[int] = []
    skipped: list[str] = []
    for label, name in enumerate(info.classes):
        if name not in present:
            continue
        images, others = images_below(folder / name)
        if not images:
            raise RunError(_without_images(dataset, folder / name, others))
        paths += images
        labels += [label] * len(images)
        skipped += others
    return dataclasses.replace(_made(dataset, info, paths, labels), skipped=skipped)


def _without_images(dataset: DatasetHparams, folder: Path, others: list[str]) -> str:
    found = f"got {len(others)} other files, the first is {Path(others[0]).name}" if others else "got none"
    return f"{dataset.dataset_name}: expected images ({', '.join(IMAGE_SUFFIXES)}) in {folder}, {found}"


def _made(dataset: DatasetHparams, info: DatasetInfo, paths: list[str], labels: list[int]) -> FolderSplit:
    side = info.shape[1]
    return FolderSplit(dataset, paths, torch.tensor(labels, dtype=torch.int64), side, round(side * info.resized))


def _dataset(dataset: DatasetHparams, info: DatasetInfo, train: FolderSplit, test: FolderSplit) -> Dataset:
    notes = [
        f"{len(split.skipped)} files of the {part} set were left out, the first is {split.skipped[0]}: images end in "
        f"{', '.join(IMAGE_SUFFIXES)}"
        for part, split in (("training", train), ("test", test))
        if split.skipped
    ]
    return Dataset(dataset.dataset_name, info, train, test, notes=tuple(notes))


def _folders(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)))


def _check_ids(dataset: DatasetHparams, info: DatasetInfo, folder: Path) -> None:
    """Raise RunError unless there is a folder for each class; with --own_files one class is enough."""
    present = set(_folders(folder))
    if not present & set(info.classes):
        raise RunError(
            f"{dataset.dataset_name}: expected folders named by WordNet ids such as {info.classes[0]} in {folder}, got "
            f"{', '.join(sorted(present)[:3]) or 'none'}; torchvision.datasets.ImageNet(DIR, 'val') unpacks and sorts "
            "the published archives"
        )
    missing = [name for name in info.classes if name not in present]
    if missing and not dataset.own_files:
        raise RunError(
            f"{dataset.dataset_name}: {len(missing)} of {info.num_classes} classes are missing in {folder}, the first "
            f"is {missing[0]}; add --own_files to use a part of the set"
        )
