"""Robust accuracy in three lines of Python, without the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from foundations.modes import evaluation_mode
from foundations.notices import warn_at_every_call
from foundations.results import wilson_interval
from testing.attack import ArrayLike, Attack
from testing.foreign import Function
from testing.gradient_masking import masking_warnings, probed_rows
from testing.shards import Shard
from threat_specification.attacks.search import STANDING, WRONG_WITHOUT
from threat_specification.base import Threat


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
    radius   second bound, in l-inf (default: none for `bounded` threats, 8/255 for others)
    attacks  names in threat_specification.attacks.registry.ATTACKS (default: the ensemble for the number of classes),
             and functions f(model, images, labels, allowed) -> perturbed images (testing/foreign.py)
    details  return a RobustAccuracy, not only the share
    safe_moves  suites or safe changes with their severities, such as "quick:3" or "C:3,fog:2": the set is then that of
             their mixtures plus noise up to the radius (docs/evaluation.md); no functions as attacks then

    Raises UsageError for a model that does not answer with logits and for labels that are no class, and RunError if
    the model gives no finite answer for an image.

    >>> images, labels = torch.full((4, 1, 4, 4), 0.9), torch.zeros(4, dtype=torch.long)
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    >>> with torch.no_grad():  # class 0 where the image is bright
    ...     _ = model[1].weight.copy_(torch.tensor([[1.0], [-1.0]])), model[1].bias.copy_(torch.tensor([-8.0, 8.0]))
    >>> nonisotropic.robust_accuracy(model, images, labels, nonisotropic.Linf(), threshold=0.1)
    1.0
    >>> nonisotropic.robust_accuracy(model, images, labels, nonisotropic.Linf(), threshold=0.5)
    0.0
    """
    attacked = Attack(threat, threshold, radius, attacks, steps, seed, shard_size, safe_moves).search(
        model, images, labels
    )
    evaluation, found = attacked.evaluation, attacked.found
    correct, broken_by = found["N_adv_correct"], found["N_adv_broken_by"]
    few = probed_rows(len(attacked.labels), shard_size).to(attacked.labels.device)
    sample = Shard(0, attacked.images[few], attacked.labels[few], attacked.index[few])
    of_all = (found[f"N_adv_{name}"].cpu().numpy() for name in ("broken_by", "no_answer", "scaled"))
    with evaluation_mode(evaluation.model):
        told = masking_warnings(evaluation, sample, correct[few], *of_all)
    for message in told:
        warn_at_every_call(message, RobustnessWarning)
    accuracy = int(correct.sum()) / len(correct)  # not a mean in float32
    if not details:
        return accuracy
    names = {STANDING: "", WRONG_WITHOUT: "clean"} | dict(enumerate(evaluation.attacks, start=1))
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
