"""Files of corrupted images in their real formats, small."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from datasets.corruption_files import read_corruption_files
from foundations.errors import RunError, UsageError

LABELS = torch.tensor([0, 0, 1, 1, 1])
ROWS = torch.tensor([3, 0])


@pytest.fixture
def cifar_c(tmp_path: Path) -> Path:
    images = numpy.random.default_rng(0).integers(0, 256, (25, 6, 4, 3), dtype=numpy.uint8)
    numpy.save(tmp_path / "fog.npy", images)
    numpy.save(tmp_path / "labels.npy", numpy.tile(LABELS.numpy(), 5).astype(numpy.uint8))
    return tmp_path


def test_arrays_hold_severities_one_after_the_other(cifar_c: Path) -> None:
    found = read_corruption_files(cifar_c, (3, 6, 4), LABELS)
    assert {name: list(levels) for name, levels in found.items()} == {"fog": [1, 2, 3, 4, 5]}
    stored = numpy.load(cifar_c / "fog.npy")
    for severity, read in found["fog"].items():
        expected = stored[[5 * (severity - 1) + 3, 5 * (severity - 1)]].transpose(0, 3, 1, 2) / 255
        assert numpy.allclose(read(ROWS).numpy(), expected)


def test_arrays_that_do_not_fit_are_named(cifar_c: Path) -> None:
    with pytest.raises(RunError, match=r"fog.npy: expected uint8 .* 3\], got uint8 \[25, 6, 4, 3\]"):
        read_corruption_files(cifar_c, (3, 5, 4), LABELS)
    with pytest.raises(RunError, match="expected the labels of the 5 test images"):
        read_corruption_files(cifar_c, (3, 6, 4), LABELS.flip(0))
    stored = numpy.load(cifar_c / "labels.npy")
    for wrong in (numpy.array(3), stored.astype(str), stored + 0.3, stored[:, None]):
        numpy.save(cifar_c / "labels.npy", wrong)
        with pytest.raises(RunError, match="expected the labels of the 5 test images"):
            read_corruption_files(cifar_c, (3, 6, 4), LABELS)
    for right in (stored.astype(numpy.float32), stored):
        numpy.save(cifar_c / "labels.npy", right)
        assert "fog" in read_corruption_files(cifar_c, (3, 6, 4), LABELS)
    (cifar_c / "fog.npy").write_bytes((cifar_c / "fog.npy").read_bytes()[:300])
    for damaged in ((cifar_c / "fog.npy").read_bytes(), b"no array", b""):  # NumPy's advice is to trust such a file
        (cifar_c / "fog.npy").write_bytes(damaged)
        with pytest.raises(RunError, match=r"fog.npy: expected an array of numbers as numpy.save writes it"):
            read_corruption_files(cifar_c, (3, 6, 4), LABELS)
    with pytest.raises(UsageError, match="corrupted test images: expected the folder that they are in"):
        read_corruption_files(cifar_c / "nowhere", (3, 6, 4), LABELS)
    (cifar_c / "labels.npy").unlink()
    with pytest.raises(RunError, match=r"cannot read .*labels.npy: No such file or directory$"):
        read_corruption_files(cifar_c, (3, 6, 4), LABELS)


NAMES = [f"n0{label}/val_{number}" for number, label in enumerate(LABELS.tolist())]


@pytest.fixture
def snow(tmp_path: Path) -> numpy.ndarray:
    """[2, 5, H, W, C] the images at severities 1 and 3; they are stored in another format than the test images."""
    pixels = numpy.random.default_rng(0).integers(0, 256, (2, 5, 6, 4, 3), dtype=numpy.uint8)
    for severity in (1, 3):
        for number, name in enumerate(NAMES):
            file = tmp_path / "weather" / "snow" / str(severity) / f"{name}.bmp"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[severity // 2, number]).save(file)
    return pixels


@pytest.mark.parametrize("kind", ["", "weather"])
def test_folders_of_images(tmp_path: Path, snow: numpy.ndarray, kind: str) -> None:
    place = tmp_path if kind else tmp_path / "weather"
    (place / ".DS_Store").write_text("x")
    (tmp_path / "weather" / "snow" / "3" / "n00" / "._val_0.bmp").write_text("x")
    (tmp_path / "weather" / "snow" / "3" / ".hidden").mkdir()
    found = read_corruption_files(place, (3, 6, 4), LABELS, NAMES)
    assert list(found) == ["snow"] and list(found["snow"]) == [1, 3]
    assert numpy.allclose(found["snow"][3](ROWS).numpy(), snow[1][[3, 0]].transpose(0, 3, 1, 2) / 255)
    with pytest.raises(RunError, match=r"expected an image of shape \(3, 8, 8\)"):
        read_corruption_files(place, (3, 8, 8), LABELS, NAMES)["snow"][1](ROWS)


def test_files_are_paired_by_class_and_name_whatever_their_order(tmp_path: Path, snow: numpy.ndarray) -> None:
    order = [4, 0, 3, 1, 2]
    names = [NAMES[row] for row in order]
    found = read_corruption_files(tmp_path, (3, 6, 4), LABELS[order], names)
    assert numpy.allclose(found["snow"][3](ROWS).numpy(), snow[1][[1, 4]].transpose(0, 3, 1, 2) / 255)


def test_a_corruption_below_two_folders_is_refused(tmp_path: Path, snow: numpy.ndarray) -> None:
    shutil.copytree(tmp_path / "weather" / "snow" / "3", tmp_path / "more" / "snow" / "4")
    assert list(read_corruption_files(tmp_path, (3, 6, 4), LABELS, NAMES)["snow"]) == [4, 1, 3]
    shutil.copytree(tmp_path / "weather" / "snow" / "3", tmp_path / "more" / "snow" / "3")
    with pytest.raises(RunError, match="expected one corruption of a name, got snow below several folders"):
        read_corruption_files(tmp_path, (3, 6, 4), LABELS, NAMES)


def test_classes_that_are_called_like_severities(tmp_path: Path) -> None:
    names = [f"{label}/{number}" for number, label in enumerate((1, 1, 5))]
    for name in names:
        file = tmp_path / "fog" / "2" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 6), (len(file.name), 0, 0)).save(file)
    found = read_corruption_files(tmp_path, (3, 6, 4), torch.tensor([0, 0, 1]), names)
    assert list(found) == ["fog"] and list(found["fog"]) == [2]
    (tmp_path / "fog" / "2" / "1" / "0.bmp").write_bytes((tmp_path / "fog" / "2" / "1" / "0.png").read_bytes())
    with pytest.raises(RunError, match="expected one file of a name in a class, whatever its suffix, got several"):
        read_corruption_files(tmp_path, (3, 6, 4), torch.tensor([0, 0, 1]), names)


def test_files_that_are_no_versions_of_the_test_images_are_named(tmp_path: Path, snow: numpy.ndarray) -> None:
    def read(names: list[str]) -> None:
        read_corruption_files(tmp_path, (3, 6, 4), LABELS, names)

    with pytest.raises(RunError, match=r"3 test images, by class and name; 2 belong to none \(n01/val_3, n01/val_4\)"):
        read(NAMES[:3])
    others = [name.replace("n0", "zebra") for name in NAMES]
    with pytest.raises(
        RunError, match=r"5 are missing \(zebra0/val_0, .*\); 5 belong to none \(n00/val_0, n00/val_1, n01"
    ):
        read(others)
    for names in ([], [*NAMES[:4], NAMES[0]]):
        with pytest.raises(RunError, match="the test images have no names of their own"):
            read(names)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="got neither"):
        read_corruption_files(tmp_path, (3, 6, 4), LABELS)
