"""Search, download and check of the files of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets.info import DatasetInfo
from foundations.errors import RunError
from foundations.input_hparams import DatasetHparams


class DataMissing(RunError):
    """An error for files of a data set that were not found."""


def find_folder(dataset: DatasetHparams, info: DatasetInfo, data_dir: Path | None, download: object = None) -> Path:
    """The first of data_dir and its subfolders `info.folders` that contains all of `info.files`.

    Raises DataMissing if there is none.

    download   called with data_dir if there is none and --download is given; None if there is no download
    """
    name = dataset.dataset_name
    if data_dir is None:
        raise DataMissing(f"{name}: no folder to look in; say where it is with --data_dir=DIR")
    found = _holding(info, data_dir)
    if found is None and dataset.download and callable(download):
        fetch(name, download, data_dir)
        found = _holding(info, data_dir)
    if found is not None:
        return found
    needed = [file for file in info.files if file[0] != "?"]
    folders = _places(info, data_dir)
    best = max(folders, key=lambda folder: sum(map(bool, (file_in(folder, file, info) for file in needed))))
    missing = [file for file in needed if file_in(best, file, info) is None]
    shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
    raise DataMissing(
        f"{name} is not in {data_dir}: expected {shown} in it or in {' or '.join(info.folders)} below it; "
        f"name its folder with --data_dir=DIR{'' if download is None else ', or fetch it'}"
    )


def _places(info: DatasetInfo, data_dir: Path) -> list[Path]:
    return [data_dir, *(data_dir / part for part in info.folders)]


def _holding(info: DatasetInfo, data_dir: Path) -> Path | None:
    needed = [file for file in info.files if file[0] != "?"]
    places = _places(info, data_dir)
    return next((place for place in places if all(file_in(place, file, info) for file in needed)), None)


def file_in(folder: Path, name: str, info: DatasetInfo) -> Path | None:
    """The path of a file or folder, of the file's .gz first if the reader takes it: only that has a checksum."""
    names = [f"{name}.gz", name] if info.compressed else [name]
    return next((folder / each for each in names if (folder / each).exists()), None)


def fetch(name: str, download: Callable[[Path], object], data_dir: Path) -> None:
    """Run a downloader of torchvision; raises RunError for all of its different errors."""
    import tarfile
    import urllib.error

    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with archives_stay_below():
            download(data_dir)
    except (RuntimeError, OSError, urllib.error.URLError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{name}: cannot be downloaded into {data_dir}: {reason}; get its files on a machine with the internet and "
            "name their folder with --data_dir=DIR"
        ) from error


@contextmanager
def archives_stay_below() -> Iterator[None]:
    """A block in which no tar archive writes outside its destination folder, even if third-party code unpacks it.

    Zip archives need no such block: Python's reader removes the parts of a name that lead outside. Early releases of
    Python 3.10 and 3.11 have no filter for tar archives; there the published checksums, which are checked before
    unpacking, are the only protection.
    """
    import tarfile

    only_data = getattr(tarfile, "data_filter", None)
    before = getattr(tarfile.TarFile, "extraction_filter", None)
    if only_data is not None:
        tarfile.TarFile.extraction_filter = staticmethod(only_data)
    try:
        yield
    finally:
        if only_data is not None:
            tarfile.TarFile.extraction_filter = before


def check_file(dataset: DatasetHparams, path: Path, *md5s: str) -> None:
    """Raise RunError if a file is empty, or if its MD5 is not in `md5s`.

    The MD5 is not checked if `md5s` is empty, or with --own_files.
    """
    from torchvision.datasets.utils import calculate_md5

    if path.is_file() and path.stat().st_size == 0:
        raise damaged(dataset, path, "it is empty")
    if md5s and not dataset.own_files and (found := calculate_md5(str(path))) not in md5s:
        raise RunError(
            f"{dataset.dataset_name}: {path} is not the published file (MD5 {found}, expected {md5s[0]}): cut short or "
            "changed; remove it and add --download, or add --own_files if it is meant to differ"
        )


def damaged(dataset: DatasetHparams, path: Path, reason: object) -> RunError:
    """An error for a file that cannot be read; the caller raises it."""
    text = " ".join(str(reason).split())
    return RunError(f"{dataset.dataset_name}: cannot read {path}: {text}; replace it by an undamaged copy")
