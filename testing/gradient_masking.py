"""Signs that a robustness figure should not be believed: probes of a model on a few examples, and what they say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import numpy
import torch
from torch import Tensor, nn

from testing import autoattack
from testing.evaluations import AttackEvaluation
from testing.shards import Shard, count_correct
from threat_specification.attacks.apgd import apgd
from threat_specification.attacks.base import Attack, AttackResult, AttackSet, Classifier, Task
from threat_specification.attacks.gradients import Kind, kinds
from threat_specification.attacks.pgd import momentum_pgd, targeted_pgd
from threat_specification.attacks.random_search import random_search
from threat_specification.norms import BoundLinf

BOX_ACCURACY = 0.05  # what an attack that may paint any image can leave of a model with gradients to follow
KIND_SHARE = 0.1  # of the examples
GRADIENT_FREE_SHARE = 0.05  # of the broken examples
ELSEWHERE_SHARE = 0.02  # of the examples
GRADIENT_FREE = ("random_search", autoattack.GRADIENT_FREE)
DRAWS = 2_000_000  # of random numbers: none that the ensemble draws
SMOOTH_PASSES, SMOOTH_NOISE = 4, 1 / 3  # of the smoothed copy; the noise in units of how far a pixel may move


class Smoothed(nn.Module):
    """A copy of a model whose answer is the mean over the same few noisy images: what oscillates is averaged away."""

    def __init__(self, model: Classifier, noise: Tensor) -> None:
        """noise: [P, C, H, W], with both signs."""
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.model((images + noise).clamp(0, 1)) for noise in self.noise]).mean(0)


def _transfer(task: Task, draw: int) -> AttackResult:
    """Descent on the smoothed copy, judged by the model."""
    generator = torch.Generator().manual_seed(draw)
    half = torch.randn(SMOOTH_PASSES // 2, *task.examples.shape[1:], generator=generator).to(task.examples.device)
    noise = SMOOTH_NOISE * float(task.allowed.reach.amax()) * half
    found = momentum_pgd(replace(task, model=Smoothed(task.model, torch.cat([noise, -noise]))), draw)
    memory = task.best_so_far()
    memory.ask(found.delta)
    return memory.result


# What to say of an attack that begins elsewhere -> that attack, for examples that the ensemble left.
ELSEWHERE: dict[str, Attack] = {
    "twice the steps from another corner": lambda task: momentum_pgd(
        replace(task, steps=2 * task.steps), DRAWS, starts=("corner",)
    ),
    "each target from another corner": lambda task: targeted_pgd(task, DRAWS + 100, starts={"corner": 9}),
    "a smoothed copy of the model": lambda task: _transfer(task, DRAWS + 200),
    "a search without gradients": partial(random_search, draw=DRAWS + 1000),
}

CAUSES: dict[Kind, str] = {
    Kind.VANISHING: "the gradient vanishes: something cuts it off",
    Kind.WRONG_SIGN: "the gradient has the wrong sign: the loss falls along it",
    Kind.NOT_OF_THE_LOSS: "the gradient is not that of the loss: it is another function's, or random",
    Kind.SHATTERED: "the gradient is shattered: it holds on the shortest moves alone",
    Kind.QUANTISED: "the input or the answers are quantised: short moves change nothing",
    Kind.RANDOM: "the answers to one image differ by more than its gradient tells: they are random",
}


@dataclass(frozen=True)
class Probe:
    """A look at a model on a few examples; shares are of the examples it gets right.

    kinds      of gradients that cannot be followed
    elsewhere  of what attacks that begin elsewhere break besides, by an entry of ELSEWHERE
    """

    box_accuracy: float = 0.0
    like_probabilities: bool = False
    answers_differ: bool = False
    kinds: dict[Kind, float] = field(default_factory=dict)
    elsewhere: dict[str, float] = field(default_factory=dict)


def probe(evaluation: AttackEvaluation, shard: Shard, robust: Tensor) -> Probe:
    """Look at a model on one shard. robust: [n] bool, what the evaluation's attacks left of it."""
    model = evaluation.model
    right = count_correct(model, shard.images, shard.labels)
    count = max(1, int(right.sum()))
    search = evaluation.search(shard)
    task = search.task(evaluation.headline, robust)
    with torch.no_grad():
        first, second = model(shard.images), model(shard.images)
    box = AttackSet.within(BoundLinf(shard.images), 1.0, 1.0)
    painted = apgd(replace(task, allowed=box, robust=right), DRAWS + 300)
    found = kinds(replace(task, robust=right), DRAWS + 310)
    elsewhere = {}
    for number, (name, attack) in enumerate(ELSEWHERE.items(), start=1):
        before = search.robust(evaluation.headline) & robust
        if bool(before.any()):
            search.record(attack(replace(task, robust=before)), number, task.allowed.fixed)
        elsewhere[name] = float((before & ~search.robust(evaluation.headline)).sum()) / count
    sums = first.sum(1)
    return Probe(
        box_accuracy=float((right & ~painted.success).sum()) / count,
        like_probabilities=bool(((first >= 0) & (first <= 1)).all() and ((sums - 1).abs() < 1e-4).all()),
        answers_differ=not torch.equal(first, second),
        kinds={kind: float((found[right] == kind).sum()) / count for kind in CAUSES},
        elsewhere=elsewhere,
    )


def warnings(found: Probe, broken_by: numpy.ndarray, attacks: list[str]) -> list[str]:
    """What a reader of the figure should know, a sentence each; broken_by as in examples.npz."""
    broken = int((broken_by > 0).sum())
    # Alone it has nothing to be compared with.
    numbers = [number for number, name in enumerate(attacks, start=1) if name in GRADIENT_FREE and number > 1]
    free = int(numpy.isin(broken_by, numbers).sum())
    besides = sum(found.elsewhere.values())
    where = ", ".join(name for name, share in found.elsewhere.items() if share)
    messages = {
        f"an attack bounded by nothing but the pixel box leaves accuracy {found.box_accuracy:.2f}: gradients mislead": (
            found.box_accuracy > BOX_ACCURACY
        ),
        "the model's answers look like probabilities: attacks need logits, taken before the softmax": (
            found.like_probabilities
        ),
        "the model answers differently to the same input: use --eot to attack the mean of its answers": (
            found.answers_differ
        ),
        f"the search without gradients broke {free} examples that attacks with gradients left robust": (
            free > GRADIENT_FREE_SHARE * max(1, broken)
        ),
        f"the figure is too high: attacks that begin elsewhere ({where}) break another {besides:.0%} of a sample": (
            besides > ELSEWHERE_SHARE
        ),
    }
    causes = [f"{CAUSES[kind]} ({share:.0%} of a sample)" for kind, share in found.kinds.items() if share > KIND_SHARE]
    return causes + [message for message, holds in messages.items() if holds]


def masking_warnings(
    evaluation: AttackEvaluation, shard: Shard, robust: Tensor, broken_by: numpy.ndarray, no_answer: numpy.ndarray
) -> list[str]:
    """Why the figure of an evaluation may be too high, a sentence each; nothing where there is no reason to doubt it.

    shard      a few of the examples;  robust  [n] bool of those, what the attacks left
    broken_by, no_answer  of all examples, as in examples.npz
    """
    told = warnings(probe(evaluation, shard, robust), broken_by, list(evaluation.attacks))
    if evaluation.attacks.keys() <= set(autoattack.STANDARD):
        told += autoattack.findings(evaluation.model, shard.images, shard.labels)
    if lost := int(no_answer.sum()):
        told.append(f"the model's answers hold NaN for {lost} of {len(no_answer)} examples: counted as wrong")
    return told
