"""Attacks of other libraries, as functions for `test --foreign_attacks=NAME,NAME@benchmarks/foreign_attacks.py`.

They search in the l-inf ball around each image that contains the set, and know nothing of the threat; the toolkit
projects what they return.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def radius_of(allowed) -> float:
    """The largest change of a pixel in the set, for any image."""
    return float(allowed.reach.max())


def foolbox_pgd(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    """Foolbox's PGD in l-inf, 40 steps of a tenth of the radius."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    return foolbox.attacks.LinfPGD(steps=40, rel_stepsize=0.1)(wrapped, images, labels, epsilons=radius_of(allowed))[1]


def foolbox_pgd_inside(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    """The same, but with the set's own projection in every step: attacks that allow it are worth this one method."""
    import eagerpy
    import foolbox

    class Inside(foolbox.attacks.LinfPGD):
        def project(self, x, x0, epsilon):
            return eagerpy.astensor(images + allowed.project(x.raw - images))

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    return Inside(steps=40, rel_stepsize=0.25)(wrapped, images, labels, epsilons=radius_of(allowed))[1]


def foolbox_ddn(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    """Foolbox's DDN: the nearest misclassified point in l2."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    found = foolbox.attacks.DDNAttack(steps=40)(wrapped, images, labels, epsilons=None)[1]
    return torch.where(found.isfinite(), found, images)


def autoattack_apgd(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    """AutoAttack's Auto-PGD with cross-entropy in l-inf."""
    from pyautoattack import AutoAttack

    adversary = AutoAttack(model, norm="Linf", eps=radius_of(allowed), version="standard", device=images.device)
    adversary.attacks_to_run, adversary.verbose = ["apgd-ce"], False
    return adversary.run_standard_evaluation(images, labels, batch_size=len(images))[0]
