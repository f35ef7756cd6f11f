"""The identity of own data in the hash of a run: the list of the files that their reader reads, and its digest."""

from __future__ import annotations

import os
from pathlib import Path

from datasets.finding import file_in, find_folder
from datasets.info import DatasetInfo
from datasets.registry import dataset_info
from foundations.digests import files_below, once, set_digest
from foundations.environment import resolve_root
from foundations.errors import UsageError
from foundations.input_hparams import DatasetHparams

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def images_below(folder: Path | str) -> tuple[list[str], list[str]]:
    """Paths of the images below a folder, by their suffixes, and those of the other files."""
    files = files_below(folder)
    images = [path for path in files if path.lower().endswith(IMAGE_SUFFIXES)]
    return images, sorted(set(files) - set(images))


def files_read(info: DatasetInfo, folder: Path) -> dict[str, str]:
    """Name below the set's folder -> path, of every file that the reader reads."""
    found: dict[str, str] = {}
    for name in info.files:
        path = file_in(folder, name.removeprefix("?"), info)
        if path is not None:
            paths = images_below(path)[0] if path.is_dir() else [os.fspath(path)]
            found |= {os.path.relpath(each, folder): each for each in paths}
    return found


def digest_of_data(dataset: DatasetHparams) -> str:
    """The digest of the files that are read, wherever they were found; computed once in a command.

    Raises UsageError if --data_dir is no folder or a file cannot be read, and DataMissing if the set is not there.
    """
    info = dataset_info(dataset)
    data_dir = Path(dataset.data_dir).expanduser() if dataset.data_dir else resolve_root("") / "data"
    if dataset.data_dir and not data_dir.is_dir():
        raise UsageError(f"--data_dir: cannot read {data_dir}: {'not a folder' if data_dir.exists() else 'not there'}")
    if dataset.download and dataset.own_files:
        raise UsageError("--download: fetches the published files; leave out --own_files")
    folder = find_folder(dataset, info, data_dir)
    try:
        return once(f"{dataset.dataset_name}\0{folder.absolute()}", lambda: set_digest(files_read(info, folder)))
    except OSError as error:
        raise UsageError(f"--data_dir: cannot read {error.filename or folder}: {error.strerror}") from error
