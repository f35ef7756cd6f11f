"""Attacks by name, all called alike, and the ensemble that a figure is based on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from threat_specification.attacks.apgd import apgd, apgd_over_targets
from threat_specification.attacks.base import AttackSet, Attempt, Classifier
from threat_specification.attacks.inscribed import l2_inscribed as inscribed
from threat_specification.attacks.minimal_gauge import minimal_gauge as smallest
from threat_specification.attacks.pgd import falling
from threat_specification.attacks.pgd import pgd as descent
from threat_specification.attacks.pgd import post_hoc as afterwards
from threat_specification.attacks.random_search import random_search as search

# (model, labels, allowed, seed, index in the data set, steps, standing) -> what was found for those `standing`
Member = Callable[[Classifier, Tensor, AttackSet, int, Tensor, int, Tensor], Attempt]

MOMENTUM = 0.9  # of momentum_pgd
REACH = 20.0  # of all its steps together, times the distance that a pixel may move
QUERIES_PER_STEP = 5  # forward passes of the search without gradients, for each step of the others


def _apgd(loss: str, draw: int) -> Member:
    def member(model, labels, allowed, seed, index, steps, standing) -> Attempt:
        start = allowed.random_start(seed, index, draw)
        return apgd(model, labels, allowed, start, steps, loss, standing)

    return member


def _targeted(model, labels, allowed, seed, index, steps, standing) -> Attempt:
    return apgd_over_targets(model, labels, allowed, seed, index, steps, standing)


def _inscribed(model, labels, allowed, seed, index, steps, standing) -> Attempt:
    return inscribed(model, labels, allowed, steps, standing)


def _minimal_gauge(model, labels, allowed, seed, index, steps, standing) -> Attempt:
    start = torch.zeros_like(allowed.lower)
    return smallest(model, labels, allowed, start, steps, standing)


def _random_search(model, labels, allowed, seed, index, steps, standing) -> Attempt:
    return search(model, labels, allowed, seed, index, QUERIES_PER_STEP * steps, standing)


def _pgd(model, labels, allowed, seed, index, steps, standing) -> Attempt:
    """At two step sizes, as one cannot know which suits."""
    attempt = Attempt.none(allowed.lower)
    for draw, step_size in ((5, allowed.reach / 4), (6, 2 * allowed.reach)):
        start = allowed.random_start(seed, index, draw)
        attempt = attempt.then(descent(model, labels, allowed, start, steps, step_size, standing & ~attempt.broken))
    return attempt


def _momentum_pgd(model, labels, allowed, seed, index, steps, standing) -> Attempt:
    start, size = allowed.random_start(seed, index, 8), REACH / steps * allowed.reach
    return descent(model, labels, allowed, start, steps, size, standing, momentum=MOMENTUM, schedule=falling)


def _post_hoc(model, labels, allowed, seed, index, steps, standing) -> Attempt:
    return afterwards(model, labels, allowed, allowed.random_start(seed, index, 7), steps, standing)


MEMBERS: dict[str, Member] = {
    "apgd_ce": _apgd("ce", 1),
    "apgd_dlr": _apgd("dlr", 2),
    "apgd_t_dlr": _targeted,
    "apgd_margin": _apgd("margin", 3),
    "l2_inscribed": _inscribed,
    "minimal_gauge": _minimal_gauge,
    "random_search": _random_search,
    "pgd": _pgd,
    "momentum_pgd": _momentum_pgd,
    "post_hoc": _post_hoc,
}


def pd_auto(num_classes: int) -> list[str]:
    """The ensemble that a number of classes allows: targeted DLR needs 4, DLR 3.

    What breaks much and costs little comes first.
    """
    second = {2: "apgd_margin", 3: "apgd_dlr"}.get(num_classes, "apgd_t_dlr")
    return ["momentum_pgd", "apgd_ce", second, "l2_inscribed", "minimal_gauge", "random_search"]


def attack_in_turn(
    names: Sequence[str],
    model: Classifier,
    labels: Tensor,
    allowed: AttackSet,
    seed: int,
    index: Tensor,
    steps: int,
    standing: Tensor,
) -> Attempt:
    """Members one after the other, each on what the earlier ones left standing; only points of the set count."""
    attempt = Attempt.none(allowed.lower)
    for name in names:
        left = standing & ~attempt.broken
        if not bool(left.any()):
            break
        found = MEMBERS[name](model, labels, allowed, seed, index, steps, left)
        attempt = attempt.then(_inside_only(found, allowed))
    return attempt


def _inside_only(attempt: Attempt, allowed: AttackSet) -> Attempt:
    """What a member found outside the set, as a minimal gauge above 1, does not break an example."""
    delta, slack = attempt.delta, 1e-6
    in_box = ((delta >= allowed.lower - slack) & (delta <= allowed.upper + slack)).flatten(1).all(1)
    inside = in_box & (allowed.bound.evaluate(delta) <= allowed.threshold * (1 + 1e-5) + 1e-7)
    loss = torch.where(inside, attempt.loss, -torch.inf)
    return Attempt(attempt.broken & inside, attempt.delta, loss, attempt.forwards, attempt.backwards)
