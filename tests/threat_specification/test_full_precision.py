"""Measures and corruptions are in float32 whatever precision networks have: by --tf32, or inside torch.autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from foundations.arithmetic import arithmetic
from tests.emulated.tf32 import EmulatedTF32
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.perturbations.draws import Draws
from threat_specification.perturbations.registry import SAFE
from threat_specification.ssim import SSIMDistance

torch.manual_seed(0)
IMAGES = 0.25 + torch.rand(4, 3, 24, 24) / 2
NEAR = (IMAGES + torch.randn(4, 3, 24, 24).sign() / 255).clamp(0, 1)
LABELS = torch.arange(4) % 2
ANCHORS = AnchorSet(torch.rand(6, 3, 24, 24), torch.arange(6) % 3)

MEASURES: dict[str, Callable[[], Tensor]] = {
    "SSIM": lambda: SSIMDistance().evaluate(IMAGES, LABELS, NEAR),
    "PD": lambda: ProjectedDisplacement(anchors=ANCHORS).evaluate(IMAGES, LABELS, NEAR),
    "PD-T": lambda: ProjectedDisplacement(anchors=ANCHORS, tangents=True).evaluate(IMAGES, LABELS, NEAR),
    **{
        name: lambda name=name: SAFE[name](IMAGES, Draws(0, torch.arange(4), name), max(SAFE[name].severities))
        for name in SAFE
    },
}


def test_the_emulation_changes_products_and_convolutions() -> None:
    rows, kernel = IMAGES.flatten(1), IMAGES[:1, :1, :3, :3]
    makes = (lambda: rows @ rows.T, lambda: torch.nn.functional.conv2d(IMAGES[:, :1], kernel))
    for make in makes:
        exact = make()
        for tf32 in (False, True):
            with arithmetic(tf32), EmulatedTF32():
                assert torch.equal(make(), exact) != tf32


@pytest.mark.parametrize("name", MEASURES)
def test_tf32_changes_nothing(name: str) -> None:
    expected = MEASURES[name]()
    with arithmetic(tf32=True), EmulatedTF32():
        assert torch.equal(MEASURES[name](), expected)


@pytest.mark.parametrize("name", MEASURES)
def test_autocast_changes_nothing(name: str) -> None:
    expected = MEASURES[name]()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(MEASURES[name](), expected)
