"""Files of corrupted images in their real formats, small."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from datasets.corruption_files import read_corruption_files
from foundations.errors import RunError, UsageError
from foundations.files import file_digest

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
    (cifar_c / "fog.npy").write_bytes((cifar_c / "fog.npy").read_bytes()[:300])
    with pytest.raises(RunError, match=r"cannot read .*fog.npy"):
        read_corruption_files(cifar_c, (3, 6, 4), LABELS)
    with pytest.raises(UsageError, match="expected a folder"):
        read_corruption_files(cifar_c / "nowhere", (3, 6, 4), LABELS)


@pytest.mark.parametrize("kind", ["", "weather/"])
def test_folders_of_images(tmp_path: Path, kind: str) -> None:
    pixels = numpy.random.default_rng(0).integers(0, 256, (2, 5, 6, 4, 3), dtype=numpy.uint8)
    for severity in (1, 3):
        for number, label in enumerate(LABELS.tolist()):
            place = tmp_path / f"{kind}snow" / str(severity) / f"n0{label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[severity // 2, number]).save(place / f"val_{number}.png")
    found = read_corruption_files(tmp_path, (3, 6, 4), LABELS)
    assert list(found) == ["snow"] and list(found["snow"]) == [1, 3]
    assert numpy.allclose(found["snow"][3](ROWS).numpy(), pixels[1][[3, 0]].transpose(0, 3, 1, 2) / 255)
    with pytest.raises(RunError, match=r"expected an image of shape \(3, 8, 8\)"):
        read_corruption_files(tmp_path, (3, 8, 8), LABELS)["snow"][1](ROWS)
    with pytest.raises(RunError, match="expected 3 images in the classes of the test images, got 5"):
        read_corruption_files(tmp_path, (3, 6, 4), LABELS[:3])


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="got neither"):
        read_corruption_files(tmp_path, (3, 6, 4), LABELS)


def test_a_folders_digest_is_of_names_and_sizes(tmp_path: Path) -> None:
    digests = []
    for number, (name, content) in enumerate([("a", b"1"), ("a", b"2"), ("b", b"1"), ("a", b"12")]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_bytes(content)
        digests.append(file_digest(tmp_path / str(number)))
    assert digests[0] == digests[1] and len(set(digests)) == 3
