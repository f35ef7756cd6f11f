"""Morphs: strong changes towards another class along the gradient of a robust model.

People see them as that class (Tsipras et al. 2019). They are a source of unsafe changes that does not depend on
anchors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from threat_specification.attacks.base import Classifier, input_gradient, normalised, per_image

STEP = 0.02  # root mean square change of a pixel in a step
STEPS = 60
SURE = 0.99  # an image stops at this probability of the target


def morph(model: Classifier, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Move images [B,C,H,W] in the pixel box by steepest l2 descent on the target's cross-entropy.

    Returns the images, and [B] bool: the model's probability of the target is at least SURE there.
    """
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
