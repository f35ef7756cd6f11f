from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from foundations.errors import RunError, UsageError
from threat_specification import AnchorSet

IMAGES = torch.randint(0, 256, (6, 3, 4, 5), dtype=torch.uint8)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize("images", [IMAGES, IMAGES.float() / 255])
@pytest.mark.parametrize("indices", [None, torch.arange(6) * 7])
def test_what_is_saved_is_loaded(images: torch.Tensor, indices: torch.Tensor | None, tmp_path: Path) -> None:
    AnchorSet(images, LABELS, indices).save(tmp_path / "a.safetensors")
    AnchorSet(images, LABELS, indices).save(tmp_path / "b.safetensors")
    read = AnchorSet.load(tmp_path / "a.safetensors")
    assert read.images.dtype == images.dtype
    assert read.images.equal(images) and read.labels.equal(LABELS)
    assert (read.indices is None) == (indices is None)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_bytes_and_floats_mean_the_same_pixels() -> None:
    assert AnchorSet(IMAGES, LABELS).floats().equal(AnchorSet(IMAGES.float() / 255, LABELS).floats())
    assert AnchorSet(IMAGES, LABELS).digest != AnchorSet(IMAGES, LABELS.flip(0)).digest


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (IMAGES[:0], LABELS[:0], "N >= 1"),
        (IMAGES[0], LABELS, "N,C,H,W"),
        (IMAGES.int(), LABELS, "uint8, or floats"),
        (IMAGES.float(), LABELS, "floats in \\[0, 1\\], got some outside"),
        (IMAGES.float() / 0, LABELS, "outside or NaN"),
        (IMAGES, LABELS[:5], "6 labels"),
        (IMAGES, LABELS - 1, "labels >= 0"),
        (IMAGES, LABELS.float(), "labels"),
    ],
)
def test_unfit_anchors_are_refused(images: torch.Tensor, labels: torch.Tensor, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        AnchorSet(images, labels)


def test_files_that_are_no_anchors_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot read anchors from .*missing"):
        AnchorSet.load(tmp_path / "missing")
    (tmp_path / "page").write_text("<html>not found</html>")
    with pytest.raises(RunError, match="cannot read anchors"):
        AnchorSet.load(tmp_path / "page")
    save_file({"images": IMAGES}, tmp_path / "other")
    with pytest.raises(RunError, match="another safetensors file"):
        AnchorSet.load(tmp_path / "other")
    AnchorSet(IMAGES, LABELS).save(tmp_path / "good")
    content = bytearray((tmp_path / "good").read_bytes())
    content[-60] ^= 1
    (tmp_path / "good").write_bytes(content)
    with pytest.raises(RunError, match="damaged"):
        AnchorSet.load(tmp_path / "good")


def test_images_that_are_an_anchor_of_another_label() -> None:
    anchors = AnchorSet(IMAGES, LABELS)
    images = torch.stack([IMAGES[0], IMAGES[0], IMAGES[1] ^ 1])
    assert anchors.equal_with_another_label(images, torch.tensor([0, 1, 1])).tolist() == [False, True, False]
    with pytest.raises(UsageError, match=r"expected torch\.uint8"):
        anchors.equal_with_another_label(images.float(), torch.tensor([0, 1, 1]))
