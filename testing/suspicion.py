"""Signs that a robustness figure should not be believed: probes of a model on a few examples, and what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor, nn

from testing.shards import Shard, count_correct
from threat_specification.attacks.base import AttackSet
from threat_specification.attacks.ensemble import MEMBERS
from threat_specification.norms import BoundLinf

BOX_ACCURACY = 0.05  # what an attack that may paint any image can leave of a model with gradients to follow
VANISHED_SHARE = 0.1  # of the examples
GRADIENT_FREE_SHARE = 0.05  # of the broken examples
MORE_STEPS_SHARE = 0.02  # of the examples


@dataclass(frozen=True)
class Probe:
    """What a few examples tell about a model; shares of the examples it gets right."""

    box_accuracy: float
    vanished_gradients: float
    like_probabilities: bool
    answers_differ: bool
    more_steps_break: float


def probe(model: nn.Module, shard: Shard, allowed: AttackSet, standing: Tensor, seed: int, steps: int) -> Probe:
    """Look at a model on one shard.

    allowed    the set of the headline figure;  standing [n] bool what its attacks left
    """
    right = count_correct(model, shard.images, shard.labels)
    with torch.no_grad():
        first, second = model(shard.images), model(shard.images)
    box = AttackSet.within(BoundLinf(shard.images), 1.0, 1.0)
    painted = MEMBERS["apgd_ce"](model, shard.labels, box, seed, shard.index, steps, right)
    longer = MEMBERS["apgd_ce"](model, shard.labels, allowed, seed, shard.index, 4 * steps, standing)
    count = max(1, int(right.sum()))
    sums = first.sum(1)
    return Probe(
        box_accuracy=float((right & ~painted.broken).sum()) / count,
        vanished_gradients=float((_gradient_norms(model, shard)[right] == 0).sum()) / count,
        like_probabilities=bool(((first >= 0) & (first <= 1)).all() and ((sums - 1).abs() < 1e-4).all()),
        answers_differ=not torch.equal(first, second),
        more_steps_break=float((standing & longer.broken).sum()) / count,
    )


def _gradient_norms(model: nn.Module, shard: Shard) -> Tensor:
    inputs = shard.images.clone().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(inputs), shard.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, inputs)
    return gradient.flatten(1).norm(dim=1)


def warnings(found: Probe, broken_by: numpy.ndarray, members: list[str]) -> list[str]:
    """What a reader of the figure should know, a sentence each; broken_by as in examples.npz."""
    broken = int((broken_by > 0).sum())
    # Alone it has nothing to be compared with; and more steps are tried for APGD only.
    compared = "random_search" in members[1:]
    free = broken_by == members.index("random_search") + 1 if compared else numpy.zeros(1, bool)
    more_steps = found.more_steps_break if "apgd_ce" in members else 0.0
    messages = {
        f"an attack bounded by nothing but the pixel box leaves accuracy {found.box_accuracy:.2f}: gradients mislead": (
            found.box_accuracy > BOX_ACCURACY
        ),
        f"the gradient is exactly 0 for {found.vanished_gradients:.0%} of the examples: attacks cannot follow it": (
            found.vanished_gradients > VANISHED_SHARE
        ),
        "the model's answers look like probabilities: attacks need logits, taken before the softmax": (
            found.like_probabilities
        ),
        "the model answers differently to the same input: use --eot to attack the mean of its answers": (
            found.answers_differ
        ),
        f"the search without gradients broke {int(free.sum())} examples that attacks with gradients left standing": (
            free.sum() > GRADIENT_FREE_SHARE * max(1, broken)
        ),
        f"four times as many steps break another {found.more_steps_break:.0%} of a sample: raise --N_attack_iter": (
            more_steps > MORE_STEPS_SHARE
        ),
    }
    return [message for message, holds in messages.items() if holds]
