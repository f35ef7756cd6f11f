"""`robust_accuracy` on models whose answer is known, with threats of ours and of a user."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foundations.errors import UsageError
from testing.robust_accuracy import robust_accuracy
from tests.testing.test_suspicion import Brightness
from threat_specification import L2, AnchorSet, Linf, ProjectedDisplacement
from threat_specification.base import BoundThreat, Threat, check_images

# The border is at a mean of 0.7: these are 0.02, 0.04, ... 0.16 away from it.
DISTANCES = torch.arange(1, 9) * 0.02
IMAGES = (0.7 - DISTANCES).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
LABELS = torch.zeros(8, dtype=torch.long)


class Half(Threat):
    """A user's threat: half the largest change of a pixel."""

    name = "half"

    def bind(self, examples: Tensor, labels: Tensor) -> BoundThreat:
        check_images(examples, labels)
        return BoundHalf(examples)


class BoundHalf(BoundThreat):
    def evaluate(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1) / 2

    def project(self, delta, threshold, lower=None, upper=None) -> Tensor:
        lower, upper = self.bounds(lower, upper)
        return delta.clamp(lower.clamp_min(-2 * threshold), upper.clamp_max(2 * threshold))


@pytest.mark.parametrize(
    ("threat", "threshold", "reach"),
    [(Linf(), 0.07, 0.07), (L2(), 0.28, 0.07), (Half(), 0.035, 0.07), (Half(), 0.3, 32 / 255)],
)
def test_known_borders(threat: Threat, threshold: float, reach: float) -> None:
    model = Brightness().train()
    expected = float((reach + 1e-4 < DISTANCES).float().mean())
    assert robust_accuracy(model, IMAGES, LABELS, threat, threshold, shard_size=3) == expected
    assert model.training


def test_under_pd_and_wrong_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = AnchorSet(torch.rand(6, 1, 4, 4, generator=generator) * 0.2 + 0.7, torch.arange(6) % 2)
    threat = ProjectedDisplacement(anchors=anchors)
    model = Brightness()
    accuracies = [robust_accuracy(model, IMAGES, LABELS, threat, t, radius=0.3) for t in (0.0, 0.3, 2.0)]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] < accuracies[0]
    assert robust_accuracy(model, IMAGES, LABELS, threat, 2.0, radius=0.01) == 1  # out of reach of the radius
    with pytest.raises(UsageError, match=r"expected values in \[0, 1\]"):
        robust_accuracy(model, IMAGES * 255, LABELS, threat, 0.1)
