"""Signs of gradient masking and other faults that make a robustness figure too high.

A model is probed on a few examples; the findings become warnings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial

import numpy
import torch
from torch import Tensor, nn

from foundations.memory import is_out_of_memory
from foundations.results import percent, rounded
from testing import autoattack
from testing.among_others import depends_on_others
from testing.evaluations import AttackEvaluation
from testing.lockstep import InLockstep
from testing.shards import Shard, count_correct
from threat_specification.attacks.apgd import apgd
from threat_specification.attacks.base import Attack, AttackResult, AttackSet, Classifier, Task
from threat_specification.attacks.gradients import Kind, kinds
from threat_specification.attacks.pgd import momentum_pgd, targeted_pgd
from threat_specification.attacks.random_search import random_search
from threat_specification.norms import BoundLinf

# Limits above which a warning is given.
BOX_ACCURACY = 0.05  # accuracy under an attack bounded only by the pixel box; near 0 for a model with useful gradients
KIND_SHARE = 0.1  # share of the examples of a Probe whose gradient has one kind of fault
GRADIENT_FREE_SHARE = 0.05  # share of all adversarial examples that an attack without gradients was the first to find
ELSEWHERE_SHARE = 0.02  # share of the examples of a Probe on which only the attacks of ELSEWHERE succeed

PROBED = 50  # examples checked for signs of a misleading figure
GRADIENT_FREE = ("random_search", autoattack.GRADIENT_FREE)
WITHOUT_GRADIENTS = (*GRADIENT_FREE, "single_moves")  # these ask for no gradients
DRAWS = 2_000_000  # first draw number of the probes' random numbers; larger than all that the ensemble uses
# Forward passes of the smoothed copy; standard deviation of its noise, relative to the largest change of a pixel.
SMOOTH_PASSES, SMOOTH_NOISE = 4, 1 / 3


class Smoothed(nn.Module):
    """A smoothed copy of a model: the mean of its logits over a few fixed noise images, which removes oscillations."""

    def __init__(self, model: Classifier, noise: Tensor) -> None:
        """Keep a model and the noise [P,C,H,W], which is added to every image; it includes both signs."""
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.model((images + noise).clamp(0, 1)) for noise in self.noise]).mean(0)


def _transfer(task: Task, draw: int) -> AttackResult:
    """A transfer attack: gradient descent on the smoothed copy; success is determined by the model itself."""
    generator = torch.Generator().manual_seed(draw)
    shape = (SMOOTH_PASSES // 2, *task.examples.shape[1:])
    half = torch.randn(shape, generator=generator, dtype=torch.float32).to(task.examples.device)
    noise = SMOOTH_NOISE * float(task.allowed.pixel_reach.amax()) * half
    found = momentum_pgd(replace(task, model=Smoothed(task.model, torch.cat([noise, -noise]))), draw)
    memory = task.best_so_far()
    memory.ask(found.delta)
    return memory.result


# Description in the warning -> attack that starts elsewhere, for examples that are robust to the ensemble.
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
    """The findings about a model on a few examples; all shares are of the correctly classified examples.

    box_accuracy        share that is robust to an attack bounded only by the pixel box
    like_probabilities  True if the answers lie in [0, 1] and sum to 1
    answers_differ      True if two passes over the same images give different answers
    batch_matters       True if, beside other images, they give others again
    kinds               share of the examples whose gradient has a fault, by kind
    elsewhere           share on which an attack of ELSEWHERE is the first to succeed, by its description
    beyond              share that stands although such an attack found a wrong answer, at a point not in the set
    """

    box_accuracy: float = 0.0
    like_probabilities: bool = False
    answers_differ: bool = False
    batch_matters: bool = False
    kinds: dict[Kind, float] = field(default_factory=dict)
    elsewhere: dict[str, float] = field(default_factory=dict)
    beyond: float = 0.0


def probed_rows(count: int, shard_size: int) -> Tensor:
    """The rows of `count` examples to probe: PROBED or a shard at most, evenly spaced, since sets may be in order."""
    size = min(PROBED, shard_size, count)
    return torch.arange(size) * count // max(1, size)


def probe(evaluation: AttackEvaluation, shard: Shard, robust: Tensor) -> Probe:
    """Probe a model on one shard. robust: [n] bool, the examples robust to the evaluation's attacks."""
    model = evaluation.model
    right = count_correct(model, shard.images, shard.labels)
    count = max(1, int(right.sum()))
    search = evaluation.search(shard)
    task = search.task(evaluation.headline, robust)
    with torch.no_grad():
        first, second = model(shard.images), model(shard.images)
    same, batch_matters = torch.equal(first, second), depends_on_others(model, shard.images, first)
    box = AttackSet.within(BoundLinf(shard.images), 1.0, 1.0)
    painted = apgd(replace(task, allowed=box, robust=right), DRAWS + 300)
    found = kinds(replace(task, robust=right), DRAWS + 310)
    elsewhere, beyond = {}, torch.zeros_like(robust)
    for number, (name, attack) in enumerate(ELSEWHERE.items(), start=1):
        before = search.robust(evaluation.headline) & robust
        if bool(before.any()):
            result = attack(replace(task, robust=before))
            search.record(result, number)
            beyond |= before & result.success
        elsewhere[name] = float((before & ~search.robust(evaluation.headline)).sum()) / count
    sums = first.sum(1)
    return Probe(
        box_accuracy=float((right & ~painted.success).sum()) / count,
        like_probabilities=bool(((first >= 0) & (first <= 1)).all() and ((sums - 1).abs() < 1e-4).all()),
        answers_differ=not same,
        batch_matters=batch_matters and same,
        kinds={kind: float((found[right] == kind).sum()) / count for kind in CAUSES},
        elsewhere=elsewhere,
        beyond=float((beyond & search.robust(evaluation.headline)).sum()) / count,
    )


def warnings(found: Probe, broken_by: numpy.ndarray, attacks: list[str]) -> list[str]:
    """The warnings about a figure, one string each; broken_by as in examples.npz."""
    broken = int((broken_by > 0).sum())
    # Attacks without gradients, if an attack with gradients ran before them.
    first = next((number for number, name in enumerate(attacks, start=1) if name not in WITHOUT_GRADIENTS), math.inf)
    numbers = [number for number, name in enumerate(attacks, start=1) if name in GRADIENT_FREE and number > first]
    free = int(numpy.isin(broken_by, numbers).sum())
    besides = sum(found.elsewhere.values())
    where = ", ".join(name for name, share in found.elsewhere.items() if share)
    messages = {
        "an attack bounded by nothing but the pixel box leaves accuracy "
        f"{rounded(found.box_accuracy, 2)}: gradients mislead": (found.box_accuracy > BOX_ACCURACY),
        "the model's answers look like probabilities: attacks need logits, taken before the softmax": (
            found.like_probabilities
        ),
        "the model answers differently to the same input, and what it gets wrong by chance counts: the figure may be "
        "wrong either way; use --eot to attack the mean of its answers": (found.answers_differ),
        "answers depend on the other images of the batch: the figure may be wrong either way, and changes with the "
        "size of shards; let batch normalisation use running statistics (track_running_stats=True, eval mode)": (
            found.batch_matters
        ),
        f"the search without gradients broke {free} examples that attacks with gradients left robust": (
            free > GRADIENT_FREE_SHARE * max(1, broken)
        ),
        f"the figure is too high: attacks that begin elsewhere ({where}) break another "
        f"{percent(besides)} of a sample": (besides > ELSEWHERE_SHARE),
        f"wrong answers for {percent(found.beyond)} of a sample do not count, since their points are not in the set "
        "when measured again: the projection is not exact enough, and the figure may be too high": (
            found.beyond > ELSEWHERE_SHARE and not found.answers_differ
        ),
    }
    causes = [
        f"{CAUSES[kind]} ({percent(share)} of a sample)" for kind, share in found.kinds.items() if share > KIND_SHARE
    ]
    return causes + [message for message, holds in messages.items() if holds]


def _probe_what_fits(evaluation: AttackEvaluation, shard: Shard, robust: Tensor) -> tuple[Probe | None, Shard]:
    """Probe the first examples of a shard, as many as fit into a GPU's memory; returns them too.

    The copy of the network with noise needs the memory of several passes.
    """
    if isinstance(evaluation.model, InLockstep):  # all processes take part: none may try again alone
        return probe(evaluation, shard, robust), shard
    size = len(robust)
    while size:
        part = Shard(shard.number, shard.images[:size], shard.labels[:size], shard.index[:size])
        try:
            return probe(evaluation, part, robust[:size]), part
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        size //= 2  # outside the `except` block, in which the traceback keeps the failed tensors in memory
        torch.cuda.empty_cache()
    return None, shard


def masking_warnings(
    evaluation: AttackEvaluation,
    shard: Shard,
    robust: Tensor,
    broken_by: numpy.ndarray,
    no_answer: numpy.ndarray,
    scaled: numpy.ndarray | None = None,
) -> list[str]:
    """The reasons why the figure of an evaluation may be too high, one string each; empty if there are none.

    shard                 a few of the examples; fewer where memory does not suffice
    robust                [n] bool, those examples of the shard that are robust to the attacks
    broken_by, no_answer, scaled  of all examples, as in examples.npz
    """
    found, shard = _probe_what_fits(evaluation, shard, robust)
    if found is None:
        told = ["out of memory with a single image: signs of misleading gradients were not looked for"]
    else:
        told = warnings(found, broken_by, list(evaluation.attacks))
    if found and evaluation.attacks.keys() <= set(autoattack.STANDARD):
        told += autoattack.findings(evaluation.model, shard.images, shard.labels)
    if lost := int(no_answer.sum()):
        told.append(f"the model's answers hold NaN for {lost} of {len(no_answer)} examples: counted as wrong")
    if scaled is not None and (points := int(scaled.sum())):
        told.append(
            f"the exact projection could not solve {points} points of {int((scaled > 0).sum())} examples, which were "
            "scaled into the set instead: the attacks are weaker there"
        )
    return told
