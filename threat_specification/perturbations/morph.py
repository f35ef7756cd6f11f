"""Strong changes towards another class by the gradient of a robust model, which people see as that class
(Tsipras et al. 2019): a source of unsafe changes that knows nothing of anchors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from threat_specification.attacks.base import Classifier, input_gradient, normalised, per_image

STEP = 0.02  # change of a pixel on average in a step
STEPS = 60
SURE = 0.99  # probability of the target at which an image is left as it is


def morph(model: Classifier, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Images [B,C,H,W] moved within the pixel box by steps of steepest l2 descent of the target's cross-entropy; and
    [B] bool, whether the model is sure of the target there."""
    images = x
    for number in range(STEPS + 1):
        inputs = images.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = model(inputs)
            gradient = input_gradient(-F.cross_entropy(logits, targets, reduction="sum"), inputs)
        there = logits.detach().softmax(1).gather(1, targets.view(-1, 1)).squeeze(1) >= SURE
        if number == STEPS or bool(there.all()):
            break
        moved = (images + STEP * normalised(gradient)).clamp(0, 1)
        images = torch.where(per_image(there), images, moved)
    return images, there
