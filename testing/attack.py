"""Attacks as functions, for use from Python: one call from images to the worst images that the attacks found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foundations.errors import UsageError, check_number
from foundations.modes import evaluation_mode
from foundations.notices import warn_at_every_call
from testing.arguments import Given
from testing.evaluations import AttackEvaluation, refuse_no_answers
from testing.foreign import Function, chosen_attacks, own
from testing.moves import with_moves
from testing.shards import Memory, Shard
from threat_specification.attacks.base import NO_CLASS
from threat_specification.base import Threat, check_seed, check_set
from threat_specification.safe_moves.changes import parse

ArrayLike = Any  # a tensor, a NumPy array or a list


@dataclass(frozen=True)
class Attacked:
    """Examples after all attacks: what was evaluated, and the columns of all examples by name."""

    evaluation: AttackEvaluation
    images: Tensor
    labels: Tensor
    index: Tensor
    found: dict[str, Tensor]


@dataclass(frozen=True)
class Attack:
    """An attack as a function: attack(model, images, labels) -> perturbed images.

    The points lie in {threat <= threshold}, within `radius` of the image in l-inf, and in [0, 1].

    threat     1 is half-way to another class for ProjectedDisplacement; L2 and Linf are in the unit of pixels in [0, 1]
    radius     second bound, in l-inf (default: none for `bounded` threats, 8/255 for others)
    attacks    names in threat_specification/attacks/registry.py (default: the ensemble for the number of classes), and
               functions f(model, images, labels, allowed) -> perturbed images
    steps      of each attack; seed: of its random numbers, so that the same call gives the same images
    shard_size images attacked at once, at most: fewer where a GPU's memory does not suffice
    safe_moves as of `robust_accuracy`

    >>> images, labels = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    >>> attack = nonisotropic.Attack(nonisotropic.Linf(), 8 / 255, attacks=["apgd_ce"], steps=5)
    >>> perturbed = attack(model, images, labels)
    >>> perturbed.shape, bool((perturbed - images).abs().max() <= 8 / 255 + 1e-6)
    (torch.Size([2, 1, 4, 4]), True)
    """

    threat: Threat
    threshold: float
    radius: float | None = None
    attacks: Sequence[str | Function] = ()
    steps: int = 40
    seed: int = 0
    shard_size: int = 250
    safe_moves: str = ""

    def __post_init__(self) -> None:
        check_set(self.threat, self.threshold, self.radius)
        check_number("steps", self.steps, 1, whole=True)
        check_number("shard_size", self.shard_size, 1, whole=True)
        check_seed(self.seed)
        if not isinstance(self.safe_moves, str):
            raise UsageError(f"safe_moves: expected their names in a text, such as 'quick:3', got {self.safe_moves!r}")
        if isinstance(self.attacks, str):
            raise UsageError(f"attacks: expected a list of names and functions, got '{self.attacks}' alone")
        object.__setattr__(self, "attacks", tuple(self.attacks))  # an iterator would be empty in the second call

    def __call__(self, model: nn.Module, images: ArrayLike, labels: ArrayLike) -> Tensor:
        """[n,C,H,W] float32 in [0, 1], beside the images: for each the adversarial example found, else the perturbed
        image of largest loss that was tried; the image itself if it was misclassified without any attack.

        model    images [B,C,H,W] in [0, 1] -> logits [B,K]; evaluated in eval mode, and its own mode is restored
        images   [n,C,H,W] in [0, 1]; a tensor, an array or a list; they are not changed
        labels   [n] whole numbers, in the same ways

        Raises UsageError for what is no image, label or logits, and RunError if the model gives no finite answer for
        an image.
        """
        return self.search(model, images, labels).found["N_adv_image"]

    def search(self, model: nn.Module, images: ArrayLike, labels: ArrayLike) -> Attacked:
        """The same, with everything that is known of each example."""
        given = Given.checked(model, images, labels, self.threat, self.threshold, self.radius)
        images, labels = given.images, given.labels
        index = torch.arange(len(labels), device=labels.device)
        shards = index.split(self.shard_size)
        parts = [Shard(number, images[rows], labels[rows], rows) for number, rows in enumerate(shards)]
        with evaluation_mode(given.model):
            evaluation = self._evaluation(given)
            memory = Memory(warn_at_every_call, self.shard_size)
            rows = [memory.run(evaluation, shard) for shard in parts]
        found = {name: torch.cat([part[name] for part in rows]) for name in rows[0]}
        refuse_no_answers(found["N_adv_clean_prediction"] == NO_CLASS, index)
        return Attacked(evaluation, images, labels, index, found)

    def _evaluation(self, given: Given) -> AttackEvaluation:
        chosen = chosen_attacks(self.attacks, given.num_classes)
        evaluation = AttackEvaluation(given.model, self.threat, given.cell, chosen, self.steps, self.seed)
        if not self.safe_moves:
            return evaluation
        _refuse_beside_moves(chosen)
        return with_moves(evaluation, parse(self.safe_moves))


def _refuse_beside_moves(attacks: Mapping[str, Any]) -> None:
    """Raise UsageError for attacks that search no mixtures: without them, the figure would be too high."""
    unfit = [name for name in attacks if name not in own(attacks) or name == "post_hoc"]
    if unfit:
        raise UsageError(
            f"attacks: expected those that search mixtures of safe changes, got {', '.join(unfit)} (functions and "
            "post_hoc know no mixtures); leave them out, or safe_moves"
        )


def attack(
    model: nn.Module,
    images: ArrayLike,
    labels: ArrayLike,
    threat: Threat,
    threshold: float,
    radius: float | None = None,
    attacks: Sequence[str | Function] = (),
    steps: int = 40,
    seed: int = 0,
) -> Tensor:
    """The worst images that the attacks find in {threat <= threshold}, [n,C,H,W] in [0, 1]; arguments as of `Attack`.

    Raises UsageError for what is no image, label or logits, and RunError if the model gives no finite answer for an
    image.

    >>> images, labels = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    >>> nonisotropic.attack(model, images, labels, nonisotropic.L2(), 0.5, attacks=["apgd_ce"], steps=5).shape
    torch.Size([2, 1, 4, 4])
    """
    return Attack(threat, threshold, radius, attacks, steps, seed)(model, images, labels)
