"""Distances that can only be evaluated."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from foundations.errors import RunError, UsageError
from threat_specification.perceptual import FeatureDistance, dreamsim, lpips
from threat_specification.ssim import SSIMDistance

LABELS = torch.zeros(2, dtype=torch.long)


def ssim_by_loops(x: Tensor, y: Tensor) -> float:
    """Wang et al. 2004, window by window, float64, for one channel [H,W]."""
    side = min(11, *x.shape)
    side -= 1 - side % 2
    middle = (side - 1) / 2
    window = [[math.exp(-((i - middle) ** 2 + (j - middle) ** 2) / 4.5) for j in range(side)] for i in range(side)]
    total = sum(map(sum, window))
    found = []
    for top in range(x.shape[0] - side + 1):
        for left in range(x.shape[1] - side + 1):
            sums = [0.0] * 5
            for i in range(side):
                for j in range(side):
                    w, a, b = window[i][j] / total, float(x[top + i, left + j]), float(y[top + i, left + j])
                    for place, term in enumerate((a, b, a * a, b * b, a * b)):
                        sums[place] += w * term
            a, b, aa, bb, ab = sums
            numerator = (2 * a * b + 1e-4) * (2 * (ab - a * b) + 9e-4)
            found.append(numerator / ((a * a + b * b + 1e-4) * (aa - a * a + bb - b * b + 9e-4)))
    return sum(found) / len(found)


@pytest.mark.parametrize("shape", [(8, 8), (13, 12), (3, 5)])
def test_ssim_is_the_papers(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 2, *shape, generator=generator), torch.rand(2, 2, *shape, generator=generator)
    found = SSIMDistance().evaluate(x, LABELS, y)
    for image in range(2):
        channels = [ssim_by_loops(x[image, c].double(), y[image, c].double()) for c in range(2)]
        assert float(found[image]) == pytest.approx(1 - sum(channels) / 2, abs=1e-4)
    assert SSIMDistance().evaluate(x, LABELS, x).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_distance_in_features_of_a_model() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x, y = torch.rand(2, 1, 2, 2), torch.rand(2, 1, 2, 2)
    measure = FeatureDistance(model, "model:tiny")
    features = [model[2](model[1](t.flatten(1))) for t in (x, y)]
    assert torch.allclose(measure.evaluate(x, LABELS, y), (features[0] - features[1]).norm(dim=1), atol=1e-6)
    assert not model[3]._forward_pre_hooks
    with pytest.raises(UsageError, match="expected a model with a linear layer"):
        FeatureDistance(nn.Conv2d(1, 1, 1), "model:none")


class FakeLPIPS(nn.Module):
    def forward(self, x: Tensor, y: Tensor, normalize: bool) -> Tensor:
        assert normalize and x.shape[1:] == (3, 64, 64)
        return (x - y).abs().mean((1, 2, 3), keepdim=True)


def test_packages_get_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("lpips")
    package.LPIPS = lambda net, verbose: FakeLPIPS()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    other = ModuleType("dreamsim")
    backbones = {"ensemble": 1.0, "dino_vitb16": 2.0}
    other.dreamsim = lambda pretrained, dreamsim_type, device: (  # type: ignore[attr-defined]
        lambda x, y: backbones[dreamsim_type] * (x - y).square().mean((1, 2, 3)),
        None,
    )
    monkeypatch.setitem(sys.modules, "dreamsim", other)
    x, y = torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), 0.5)
    device = torch.device("cpu")
    assert lpips(device).evaluate(x, LABELS, y).tolist() == pytest.approx([0.5, 0.5])
    assert dreamsim(device).evaluate(x, LABELS, y).tolist() == pytest.approx([0.25, 0.25])
    paper = dreamsim(device, "dino_vitb16")
    assert paper.name == "DreamSim:dino_vitb16"
    assert paper.evaluate(x, LABELS, y).tolist() == pytest.approx([0.5, 0.5])
    package.LPIPS = lambda net, verbose: (_ for _ in ()).throw(OSError("no route"))  # type: ignore[attr-defined]
    with pytest.raises(RunError, match="could not be loaded or downloaded"):
        lpips(device)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, make in (("lpips", lpips), ("dreamsim", dreamsim)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UsageError, match=f"pip install {name}"):
            make(torch.device("cpu"))


def test_features_of_clean_images_are_kept_until_they_change() -> None:
    asked: list[int] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    measure, labels = FeatureDistance(model, "model:flat"), torch.zeros(2, dtype=torch.long)
    images, others = torch.rand(2, 1, 2, 2), torch.rand(3, 2, 1, 2, 2)
    found = [measure.evaluate(images, labels, other) for other in others]
    assert len(asked) == 4 and all(
        torch.allclose(distances, (other - images).flatten(1).norm(dim=1), atol=1e-6)
        for distances, other in zip(found, others, strict=True)
    )
    images.mul_(0.5)  # in place: another image under the same name
    distances = measure.evaluate(images, labels, others[0])
    assert torch.allclose(distances, (others[0] - images).flatten(1).norm(dim=1), atol=1e-6)
