"""Robust accuracy in three lines of Python, without the command line."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foundations.errors import UsageError
from foundations.modes import evaluation_mode
from foundations.results import wilson_interval
from testing.arguments import checked_images, checked_labels, checked_model
from testing.evaluations import AttackEvaluation, refuse_no_answers
from testing.foreign import Function, chosen_attacks
from testing.gradient_masking import masking_warnings
from testing.moves import with_moves
from testing.shards import Shard
from threat_specification.attacks.base import NO_CLASS
from threat_specification.attacks.search import STANDING, WRONG_WITHOUT, Cell
from threat_specification.base import Threat, check_images, check_threshold
from threat_specification.norms import L2, Linf
from threat_specification.safe_moves.changes import parse

ArrayLike = Any  # a tensor, a NumPy array or a list

RADIUS = 8 / 255  # default l-inf radius for a threat that is not a norm, whose set may be unbounded
PROBED = 50  # examples checked for signs of a misleading figure, such as gradient masking


class RobustnessWarning(UserWarning):
    """A warning that a robust accuracy may be too high."""


@dataclass(frozen=True)
class RobustAccuracy:
    """The full result of `robust_accuracy`.

    accuracy   share of the examples that are robust
    low, high  95 % confidence interval of the accuracy (Wilson 1927)
    correct    [n] bool, True for robust examples
    broken_by  for each example, the first attack that succeeded; "" if it is robust, "clean" if it was misclassified
               without any attack
    perturbed  [n,C,H,W] the adversarial example found, else the perturbed image of largest loss that was tried; the
               image itself if it was misclassified without any attack
    warnings   reasons why the figure may be too high, one string each
    """

    accuracy: float
    low: float
    high: float
    correct: Tensor
    broken_by: list[str]
    perturbed: Tensor
    warnings: list[str]


def robust_accuracy(
    model: nn.Module,
    images: ArrayLike,
    labels: ArrayLike,
    threat: Threat,
    threshold: float,
    radius: float | None = None,
    attacks: Sequence[str | Function] = (),
    steps: int = 40,
    seed: int = 0,
    shard_size: int = 250,
    details: bool = False,
    safe_moves: str = "",
) -> float | RobustAccuracy:
    """The share of examples that are classified correctly and for which no attack succeeds in {threat <= threshold}.

    Issues a `RobustnessWarning` if the share may be too high: because the model's gradients mislead the attacks, or
    because further attacks succeed.

    model    images [B,C,H,W] in [0, 1] -> logits [B,K]; evaluated in eval mode, and its own mode is restored
    images   [n,C,H,W] in [0, 1]; a tensor, an array or a list; they are not changed
    labels   [n] whole numbers, in the same ways
    radius   second bound, in l-inf (default: none for L2 and Linf, 8/255 for other threats)
    attacks  names in threat_specification.attacks.registry.ATTACKS (default: the ensemble for the number of classes),
             and functions f(model, images, labels, allowed) -> perturbed images (testing/foreign.py)
    details  return a RobustAccuracy, not only the share
    safe_moves  suites or safe changes with their severities, such as "quick:3" or "C:3,fog:2": the set is then that of
             their mixtures plus noise up to the radius (docs/evaluation.md)

    Raises UsageError for a model that does not answer with logits and for labels that are no class, and RunError if
    the model gives no finite answer for an image.
    """
    images = checked_images(images)
    check_threshold(threshold)
    if not len(images):
        raise UsageError("images: expected at least one, got none")
    if images.dim() != 4:
        raise UsageError(f"images: expected [n,C,H,W], got {list(images.shape)}")
    with evaluation_mode(model):
        model, num_classes = checked_model(model, images[:1])
    labels = checked_labels(labels, images, num_classes)
    check_images(images, labels)
    if radius is None:
        radius = math.inf if isinstance(threat, (L2, Linf)) else RADIUS
    index = torch.arange(len(labels), device=labels.device)
    parts = [Shard(number, images[rows], labels[rows], rows) for number, rows in enumerate(index.split(shard_size))]
    with evaluation_mode(model):
        chosen = chosen_attacks(attacks, num_classes)
        evaluation = AttackEvaluation(model, threat, Cell(threshold, radius), chosen, steps, seed)
        if safe_moves:
            evaluation = with_moves(evaluation, parse(safe_moves))
            chosen = dict(evaluation.attacks)
        rows = [evaluation(shard) for shard in parts]
        found = {name: torch.cat([part[name] for part in rows]) for name in rows[0]}
        refuse_no_answers(found["N_adv_clean_prediction"] == NO_CLASS, index)
        correct, broken_by = found["N_adv_correct"], found["N_adv_broken_by"]
        few = slice(0, min(PROBED, shard_size))
        sample = Shard(0, images[few], labels[few], index[few])
        of_all = (found[f"N_adv_{name}"].cpu().numpy() for name in ("broken_by", "no_answer", "scaled"))
        told = masking_warnings(evaluation, sample, correct[few], *of_all)
    for message in told:
        warnings.warn(message, RobustnessWarning, stacklevel=2)
    if not details:
        return float(correct.float().mean())
    names = {STANDING: "", WRONG_WITHOUT: "clean"} | dict(enumerate(chosen, start=1))
    accuracy = float(correct.float().mean())
    low, high = wilson_interval(accuracy, len(correct))
    return RobustAccuracy(
        accuracy,
        low,
        high,
        correct,
        [names[number] for number in broken_by.tolist()],
        found["N_adv_image"],
        told,
    )
