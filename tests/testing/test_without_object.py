"""Images with an empty mask: nothing may change there, so that they stood against every attack, with threat 0."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foundations.errors import UsageError
from testing.attack import attack
from testing.robust_accuracy import robust_accuracy
from threat_specification import AnchorSet, Intersection, Linf, ProjectedDisplacement, Threat
from threat_specification.measuring import evaluate_threat_of
from training.any_loop import TrainingAdversary

COUNT, EMPTY = 300, 260  # more than are measured, or attacked, at once
GENERATOR = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.rand(COUNT, 1, 4, 4, generator=GENERATOR), torch.arange(COUNT) % 2
ANCHORS = AnchorSet(torch.rand(6, 1, 4, 4, generator=GENERATOR), torch.arange(6) % 2)
IMAGES[EMPTY:, :, 0] = 0  # by this the source knows them


class Masks:
    """The right half, but for images with a black first row; counts the images that it is asked about."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        masks = torch.zeros(len(images), 1, 4, 4, dtype=torch.bool)
        masks[..., 2:] = (images[:, :, :1] > 0).any(3, keepdim=True)
        return masks


def threat_of(source: Masks | str, **options: str) -> ProjectedDisplacement:
    return ProjectedDisplacement(anchors=ANCHORS, segmented=True, mask_source=source, **options)  # type: ignore[arg-type]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in an intersection"])
@pytest.mark.parametrize("kind", ["callable", "file"])
def test_the_first_is_named(kind: str, alone: bool, tmp_path: Path) -> None:
    """By its place among all images, not in its shard; the source was asked once, and tells which they are."""
    source = Masks()
    save_file({"masks": source(IMAGES)}, tmp_path / "masks.safetensors")
    source.asked = 0
    segmented = threat_of(source if kind == "callable" else f"file:{tmp_path / 'masks.safetensors'}")
    threat: Threat = segmented if alone else Intersection([(segmented, 1.0), (Linf(), 0.5)])
    given = (model(), IMAGES, LABELS, threat, 0.1)
    for call in (
        lambda: evaluate_threat_of(IMAGES * 0.8, IMAGES, LABELS, threat),
        lambda: robust_accuracy(*given, attacks=["apgd_ce"], steps=2),
        lambda: attack(*given, attacks=["apgd_ce"], steps=2),
        lambda: threat.bind(IMAGES, LABELS, indices=torch.arange(COUNT)),  # type: ignore[call-arg]
        lambda: threat.evaluate(IMAGES, LABELS, IMAGES * 0.8, indices=torch.arange(COUNT)),
    ):
        with pytest.raises(UsageError, match=rf"empty mask for image {EMPTY}: .* `without_object\(images\)`"):
            call()
    assert source.asked == COUNT * (kind == "callable")
    empty = segmented.without_object(IMAGES, torch.arange(COUNT))
    assert empty.tolist() == [number >= EMPTY for number in range(COUNT)]


def test_the_others_are_measured() -> None:
    segmented = threat_of(Masks())
    left = ~segmented.without_object(IMAGES)
    images, labels = IMAGES[left], LABELS[left]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = robust_accuracy(model(), images[:20], labels[:20], segmented, 0.5, attacks=["apgd_ce"], steps=5)
    assert isinstance(found, float) and found < 1
    assert bool((evaluate_threat_of(1 - images, images, labels, segmented)["PD-S"] > 0).any())
    assert len(images) == EMPTY


def test_masks_of_a_file_are_measured_in_the_order_of_the_images(tmp_path: Path) -> None:
    """They were asked for without rows, which only an error answered."""
    masks = torch.rand(COUNT, 1, 4, 4, generator=GENERATOR) > 0.5
    masks[:, :, 0, 0] = True
    save_file({"masks": masks}, tmp_path / "masks.safetensors")
    of_file = threat_of(f"file:{tmp_path / 'masks.safetensors'}")
    by_call = ProjectedDisplacement(anchors=ANCHORS, segmented=True)
    found = evaluate_threat_of(IMAGES * 0.8, IMAGES, LABELS, of_file)["PD-S"]
    torch.testing.assert_close(found, by_call.evaluate(IMAGES, LABELS, IMAGES * 0.8, masks=masks))
    with pytest.raises(UsageError, match="expected all 300 that the threat's file has masks of"):
        evaluate_threat_of(IMAGES[:5] * 0.8, IMAGES[:5], LABELS[:5], of_file)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in an intersection"])
def test_training_leaves_them_clean(alone: bool) -> None:
    """A loss on the image itself is no figure; crops may move an object out of an image."""
    segmented = threat_of(Masks())
    threat: Threat = segmented if alone else Intersection([(segmented, 1.0), (Linf(), 0.5)])
    rows = slice(EMPTY - 5, EMPTY + 5)
    perturbed = TrainingAdversary(threat, 0.5, radius=0.3, steps=2)(model(), IMAGES[rows], LABELS[rows])
    moved = (perturbed != IMAGES[rows]).flatten(1).any(1)
    assert moved.tolist() == [True] * 5 + [False] * 5


def test_training_needs_masks() -> None:
    threat = ProjectedDisplacement(anchors=ANCHORS, segmented=True)
    with pytest.raises(UsageError, match="expected masks= with the call or mask_source="):
        TrainingAdversary(threat, 0.5, steps=2)(model(), IMAGES[:5], LABELS[:5])
