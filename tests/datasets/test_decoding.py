"""Pixels mean what the file says."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from datasets.decoding import read_picture
from datasets.folders import FolderSplit
from foundations.errors import RunError
from foundations.input_hparams import DatasetHparams

RAMP = numpy.linspace(0, 65535, 16).round().astype(numpy.uint16)[None].repeat(16, 0)


def pixels(path: Path) -> numpy.ndarray:
    return numpy.asarray(read_picture(path))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_grey_is_a_ramp(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / f"ramp.{suffix}")
    expected = numpy.linspace(0, 255, 16).round()
    found = pixels(tmp_path / f"ramp.{suffix}")
    assert found.shape == (16, 16, 3) and found.dtype == numpy.uint8
    assert (found == expected[None, :, None]).all()


def test_a_deep_pgm(tmp_path: Path) -> None:
    (tmp_path / "ramp.pgm").write_bytes(b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes())
    assert (pixels(tmp_path / "ramp.pgm")[3, :, 0] == numpy.linspace(0, 255, 16).round()).all()


def test_floats_in_the_unit_interval(tmp_path: Path) -> None:
    values = numpy.linspace(0, 1, 16, dtype=numpy.float32)[None].repeat(16, 0)
    Image.fromarray(values).save(tmp_path / "unit.tif")
    assert (pixels(tmp_path / "unit.tif")[0, :, 1] == numpy.linspace(0, 255, 16).round()).all()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (numpy.full((4, 4), 3.5, numpy.float32), r"expected values in \[0, 1\] of pixels of mode F, got 3.5 to 3.5"),
        (numpy.full((4, 4), numpy.nan, numpy.float32), "got nan to nan"),
        (numpy.full((4, 4), -1, numpy.int32), r"expected values in \[0, 65535\] of pixels of mode I, got -1 to -1"),
        (numpy.full((4, 4), 70000, numpy.int32), "got 70000 to 70000"),
    ],
)
def test_other_numbers_are_refused_by_name_and_mode(tmp_path: Path, values: numpy.ndarray, told: str) -> None:
    file = tmp_path / "x.tif"
    Image.fromarray(values).save(file)
    split = FolderSplit(DatasetHparams(dataset_name="image_folder"), [str(file)], torch.tensor([0]), 4, 4)
    with pytest.raises(RunError, match=f"cannot read {file}: .*{told}"):
        split.decode(0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pictures_lie_on_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (4, 4), (10, 10, 10, 255))
    picture.putpixel((1, 2), (200, 200, 200, 0))
    options = {}
    if mode == "P":
        picture = Image.new("P", (4, 4), 0)
        picture.putpalette([10, 10, 10, 200, 200, 200])
        picture.putpixel((1, 2), 1)
        options = {"transparency": 1}
    picture.convert(mode).save(tmp_path / "x.png", **options)
    found = pixels(tmp_path / "x.png")
    assert found[2, 1].tolist() == [255] * 3 and found[0, 0].tolist() == [10] * 3


def test_common_pictures_are_those_of_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets.folder import default_loader

    noise = numpy.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=numpy.uint8)
    for mode in ("RGB", "L", "CMYK", "1"):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.fromarray(noise).convert(mode).save(tmp_path / f"{mode}.{suffix}")
        file = tmp_path / f"{mode}.{suffix}"
        assert (pixels(file) == numpy.asarray(default_loader(str(file)))).all()
