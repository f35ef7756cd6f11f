"""Robust accuracy in three lines of Python, without the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foundations.modes import evaluation_mode
from testing.nonisotropic import Cell, NonisotropicEvaluation
from testing.shards import Shard
from threat_specification.attacks.ensemble import pd_auto
from threat_specification.base import Threat, check_images, check_threshold
from threat_specification.norms import L2, Linf

RADIUS = 32 / 255  # second bound of a threat that is not a norm: such a set may be unbounded


def robust_accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    threshold: float,
    radius: float | None = None,
    attacks: Sequence[str] = (),
    steps: int = 40,
    seed: int = 0,
    shard_size: int = 250,
) -> float:
    """The share of examples that the model gets right everywhere attacks look in {threat <= threshold}.

    model    images [B,C,H,W] in [0, 1] -> logits [B,K]; left in the mode it is in
    images   [n,C,H,W] in [0, 1];  labels [n]
    radius   second, l-inf bound (default: none for L2 and Linf, 32/255 for other threats)
    attacks  names in threat_specification.attacks.ensemble.MEMBERS (default: the ensemble that the classes allow)
    """
    check_images(images, labels)
    check_threshold(threshold)
    if radius is None:
        radius = math.inf if isinstance(threat, (L2, Linf)) else RADIUS
    with evaluation_mode(model):
        with torch.no_grad():
            num_classes = model(images[:1]).shape[1]
        cell = Cell(threshold, radius)
        members = list(attacks) or pd_auto(num_classes)
        evaluation = NonisotropicEvaluation(model, threat, cell, [], members, steps, seed)
        right = 0
        for number, rows in enumerate(torch.arange(len(labels), device=labels.device).split(shard_size)):
            right += int(evaluation(Shard(number, images[rows], labels[rows], rows))["N_adv_correct"].sum())
    return right / max(1, len(labels))
