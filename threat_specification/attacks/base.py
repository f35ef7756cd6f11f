"""What all attacks share: where they may go, how they ask the model, and what they give back.

Shapes: B examples, C, H, W, K classes. Every attack keeps the shape of its batch: examples that are broken, or were
not to be attacked, stay where they are, so that neither batching nor interruption changes a result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from threat_specification.attacks.losses import LOSSES, Loss
from threat_specification.base import BoundThreat

Classifier = Callable[[Tensor], Tensor]  # [B,C,H,W] in [0, 1] -> [B,K] logits

NO_CLASS = -1  # predicted where the model gives NaN: no label equals it
SLACK = (1e-5, 1e-7)  # relative and absolute: float32 can tell no better whether a point is in a set


def at_most(values: Tensor, limit: float | Tensor) -> Tensor:
    """values <= limit as far as float32 can tell: the one statement of what is inside a bound."""
    relative, absolute = SLACK
    return values <= limit * (1 + relative) + absolute


def predicted(logits: Tensor) -> Tensor:
    """The class of the largest logit, [B] of [B,K]; NO_CLASS where one is NaN, of which argmax would make an answer."""
    return torch.where(logits.isnan().any(1), NO_CLASS, logits.argmax(1))


def sign(gradient: Tensor) -> Tensor:
    """Steepest ascent in l-inf; length 1 in every pixel."""
    return gradient.sign()


def normalised(gradient: Tensor) -> Tensor:
    """Steepest ascent in l2; length 1 in a pixel on average, as with signs.

    Inside a set with oblique faces signs lead to the point of the set that is farthest along the signs, which is not
    the one farthest along the gradient.
    """
    # The gradient of a confident model is too small to be squared.
    largest = per_image(gradient.flatten(1).abs().amax(1))
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled * per_image(gradient[0].numel() ** 0.5 / scaled.flatten(1).norm(dim=1).clamp_min(1e-12))


DIRECTIONS: dict[str, Callable[[Tensor], Tensor]] = {"sign": sign, "l2": normalised}


@dataclass(frozen=True)
class AttackSet:
    """The points an attack may try: {threat <= threshold} and lower <= delta <= upper, which keeps pixels in [0, 1].

    direction   an entry of DIRECTIONS in which it goes ("": the one that suits the threat)
    """

    bound: BoundThreat
    threshold: float
    lower: Tensor
    upper: Tensor
    direction: str = field(default="", kw_only=True)

    @classmethod
    def within(cls, bound: BoundThreat, threshold: float, radius: float) -> AttackSet:
        """The set with an l-inf radius as its second bound (inf: the pixel box alone)."""
        examples = bound.examples
        lower, upper = bound.bounds((-examples).clamp_min(-radius), (1 - examples).clamp_max(radius))
        return cls(bound, threshold, lower, upper)

    @property
    def reach(self) -> Tensor:
        """The farthest that a pixel of each example may move, [B,1,1,1]. Steps scale with it: the set has no size."""
        return per_image(torch.maximum(-self.lower, self.upper).flatten(1).amax(1))

    @property
    def fixed(self) -> Tensor:
        """[B,C,H,W]: pixels that may not move at all, as in a frozen background."""
        return (self.lower == 0) & (self.upper == 0)

    @property
    def steepest(self) -> str:
        """The entry of DIRECTIONS in which attacks go."""
        return self.direction or self.bound.steepest

    def ascend(self, gradient: Tensor) -> Tensor:
        """The direction of steepest ascent that suits the set, a change of 1 for each pixel on average."""
        return DIRECTIONS[self.steepest](gradient)

    def project(self, delta: Tensor) -> Tensor:
        """A point of the set near delta."""
        return self.bound.project(delta, self.threshold, self.lower, self.upper)

    def holds(self, delta: Tensor) -> Tensor:
        """[B]: which points are in the set."""
        in_box = at_most(delta, self.upper) & at_most(-delta, -self.lower)
        return in_box.flatten(1).all(1) & at_most(self.bound.evaluate(delta), self.threshold)


@dataclass(frozen=True)
class Task:
    """The input of every attack: whom to attack, where, and what its random numbers may depend on.

    allowed   the set, at examples [B,C,H,W]      labels    [B]
    robust  [B] the examples to attack          steps     of gradient descent, in one run
    seed, index   random numbers depend on seed and index [B] in the data set alone
    """

    model: Classifier
    labels: Tensor
    allowed: AttackSet
    robust: Tensor
    seed: int
    index: Tensor
    steps: int

    @property
    def examples(self) -> Tensor:
        """[B,C,H,W]."""
        return self.allowed.bound.examples

    def best_so_far(self) -> BestSoFar:
        """Asks the model about the examples to attack."""
        return BestSoFar(self.model, self.labels, self.examples, self.robust)

    def after(self, result: AttackResult) -> Task:
        """The same task for what a result left robust."""
        return replace(self, robust=self.robust & ~result.success)

    def likeliest_others(self, count: int) -> Tensor:
        """The classes that the model holds likeliest on the clean images beside the label, [B, count]."""
        with torch.no_grad():
            logits = self.model(self.examples)
        others = logits.scatter(1, self.labels.view(-1, 1), -torch.inf)
        return others.argsort(1, descending=True)[:, : min(count, logits.shape[1] - 1)]


@dataclass(frozen=True)
class AttackResult:
    """What an attack found.

    success    [B] the model fails at the point
    delta      [B,C,H,W] a point of the set: where the model failed first, else where the loss was largest
    loss       [B] margin there: largest other logit minus that of the label, above 0 on success
    forwards, backwards   [B] passes spent on an example while it was attacked
    """

    success: Tensor
    delta: Tensor
    loss: Tensor
    forwards: Tensor
    backwards: Tensor

    @classmethod
    def none(cls, examples: Tensor) -> AttackResult:
        """Nothing tried."""
        count = torch.zeros(len(examples), dtype=torch.long, device=examples.device)
        loss = torch.full((len(examples),), -torch.inf, device=examples.device)
        return cls(count.bool(), torch.zeros_like(examples), loss, count, count.clone())

    def then(self, other: AttackResult) -> AttackResult:
        """This result and a later one on what it left robust: the better point of each example, passes added."""
        better = ~self.success & (other.success | (other.loss > self.loss))
        return AttackResult(
            self.success | other.success,
            torch.where(per_image(better), other.delta, self.delta),
            torch.where(better, other.loss, self.loss),
            self.forwards + other.forwards,
            self.backwards + other.backwards,
        )


class BestSoFar:
    """Asks the model at points of the set, and keeps the best of what it answered."""

    def __init__(self, model: Classifier, labels: Tensor, examples: Tensor, robust: Tensor) -> None:
        self.model, self.labels, self.examples, self.robust = model, labels, examples, robust
        self.result = AttackResult.none(examples)
        self.best_loss = self.result.loss.clone()

    @property
    def active(self) -> Tensor:
        """[B]: examples still under attack."""
        return self.robust & ~self.result.success

    def ask(self, delta: Tensor, loss: Loss = LOSSES["margin"], targets: Tensor | None = None) -> Tensor:
        """The loss at delta, [B], without a gradient."""
        with torch.no_grad():
            return self._note(delta, self.model((self.examples + delta).clamp(0, 1)), loss, targets)

    def ask_gradient(self, delta: Tensor, loss: Loss, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss at delta, [B], and its gradient in the input alone: the weights get none."""
        inputs = (self.examples + delta).clamp(0, 1).detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.model(inputs)
            gradient = input_gradient(loss(logits, self.labels, targets).sum(), inputs)
        counted = self.result.backwards + self.active
        noted = self._note(delta, logits.detach(), loss, targets)
        self.result = replace(self.result, backwards=counted)
        return noted, gradient

    def _note(self, delta: Tensor, logits: Tensor, loss: Loss, targets: Tensor | None) -> Tensor:
        answers = predicted(logits)
        lost = answers == NO_CLASS  # no loss is larger than that of an answer which is none
        value = loss(logits, self.labels, targets).detach().masked_fill(lost, torch.inf)
        margin = LOSSES["margin"](logits, self.labels, None).masked_fill(lost, torch.inf)
        active, result = self.active, self.result
        fails = active & (answers != self.labels)
        better = active & (fails | (value > self.best_loss))
        self.best_loss = torch.where(better, value, self.best_loss)
        self.result = AttackResult(
            result.success | fails,
            torch.where(per_image(better), delta, result.delta),
            torch.where(better, margin, result.loss),
            result.forwards + active,
            result.backwards,
        )
        return value


def input_gradient(value: Tensor, inputs: Tensor, keep: bool = False) -> Tensor:
    """The gradient of a sum; 0 where the model gives none, or none that is finite: other attacks must do without."""
    if not value.requires_grad:
        return torch.zeros_like(inputs)
    (gradient,) = torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=keep)
    return torch.zeros_like(inputs) if gradient is None else gradient.nan_to_num(0, 0, 0)


def per_image(values: Tensor) -> Tensor:
    """[B] as [B,1,1,1]."""
    return values.view(-1, 1, 1, 1)


Attack = Callable[[Task], AttackResult]
