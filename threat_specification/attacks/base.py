"""Classes that all attacks share: the allowed set, the queries of the model, and the result.

Shapes: B examples, C, H, W, K classes. Every attack keeps the shape of its batch: examples that it need not attack, or
on which it has already succeeded, keep their points. So neither batching nor interruption changes a result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from threat_specification.attacks.losses import LOSSES, Loss
from threat_specification.base import BoundThreat
from threat_specification.norms import BoundLinf

Classifier = Callable[[Tensor], Tensor]  # [B,C,H,W] in [0, 1] -> [B,K] logits

NO_CLASS = -1  # the prediction if the model returns NaN or infinity: it differs from every label
SLACK = (1e-5, 1e-7)  # relative and absolute tolerance: float32 cannot decide more exactly if a point is in a set


def at_most(values: Tensor, limit: float | Tensor) -> Tensor:
    """values <= limit up to the tolerance of float32; the only place that decides if a point satisfies a bound."""
    relative, absolute = SLACK
    return values <= limit * (1 + relative) + absolute


def predicted(logits: Tensor) -> Tensor:
    """The class of the largest logit, [B,K] to [B]; NO_CLASS if a logit is NaN, for which argmax returns a class.

    So it is if one is infinite: then no difference of logits is a number. Minus infinity rules a class out.
    """
    return torch.where(logits.amax(1).isfinite() & ~logits.isnan().any(1), logits.argmax(1), NO_CLASS)


def sign(gradient: Tensor) -> Tensor:
    """Direction of steepest ascent in l-inf: 1 or -1 in every pixel, or 0 if the gradient is 0 there."""
    return gradient.sign()


def normalised(gradient: Tensor) -> Tensor:
    """Direction of steepest ascent in l2, with root mean square 1 over the pixels, as for signs.

    In a set with oblique faces, sign steps lead to the point that is farthest in the direction of the signs. This is
    not the point that is farthest in the direction of the gradient.
    """
    # Divide by the largest entry first: a confident model's gradient is so small that its square would underflow.
    largest = per_image(gradient.flatten(1).abs().amax(1))
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled * per_image(gradient[0].numel() ** 0.5 / scaled.flatten(1).norm(dim=1).clamp_min(1e-12))


DIRECTIONS: dict[str, Callable[[Tensor], Tensor]] = {"sign": sign, "l2": normalised}


@dataclass(frozen=True)
class AttackSet:
    """The allowed points of an attack: {threat <= threshold} and lower <= delta <= upper, with pixels in [0, 1].

    direction   a key of DIRECTIONS: the direction of the attack's steps ("": the default of the threat)
    """

    bound: BoundThreat
    threshold: float
    lower: Tensor
    upper: Tensor
    direction: str = field(default="", kw_only=True)

    @classmethod
    def within(cls, bound: BoundThreat, threshold: float, radius: float) -> AttackSet:
        """The set with an l-inf radius as its second bound (inf: only the pixel box)."""
        examples = bound.examples
        lower, upper = bound.bounds((-examples).clamp_min(-radius), (1 - examples).clamp_max(radius))
        return cls(bound, threshold, lower, upper)

    @property
    def reach(self) -> Tensor:
        """The unit of step sizes: the largest change of a pixel that the bounds allow, for each example, [B,1,1,1].

        In a ball it is at most the change of a pixel where all change equally. A set {threat <= threshold} of another
        threat may be unbounded, and tells nothing.
        """
        box, usual = torch.maximum(-self.lower, self.upper).flatten(1).amax(1), self.bound.usual_change(self.threshold)
        return per_image(box if usual is None else box.clamp_max(usual))

    @property
    def pixel_reach(self) -> Tensor:
        """The usual change of a pixel in this set, [B,1,1,1]: the unit of random changes of an image, not a point."""
        return self.reach

    @property
    def steepest(self) -> str:
        """The key of DIRECTIONS that attacks use."""
        return self.direction or self.bound.steepest

    def ascend(self, gradient: Tensor) -> Tensor:
        """The direction of steepest ascent for this set, with root mean square 1 over the pixels."""
        return DIRECTIONS[self.steepest](gradient)

    @property
    def origin(self) -> Tensor:
        """The point that changes nothing."""
        return torch.zeros_like(self.lower)

    def image(self, delta: Tensor) -> Tensor:
        """The perturbed images [B,C,H,W] of points."""
        return (self.bound.examples + delta).clamp(0, 1)

    def pull_back(self, gradient: Tensor, delta: Tensor) -> Tensor:
        """The gradient of a function of `image(delta)` for delta, given that for the image."""
        return gradient

    def corner(self, share: Tensor) -> Tensor:
        """A corner of the box, outside the set in general: the upper bound where share is at least a half."""
        return torch.where(share >= 0.5, self.upper, self.lower)

    def from_pixels(self, field: Tensor, more: Callable[[int], Tensor]) -> Tensor:
        """A field of one number for each pixel, [B,C,H,W], as one for each coordinate of a point; `more(n)`: [B, n]."""
        return field

    def with_window(self, delta: Tensor, inside: Tensor, up: Tensor, chance: Tensor) -> Tensor:
        """delta with a window of the image set to its bounds, outside the set in general.

        inside   [B,1,H,W] bool: the window
        up       [B,C,1,1] bool: the upper bound, or the lower one
        chance   [B] further random numbers in [0, 1), for points that are more than pixels
        """
        return torch.where(inside, torch.where(up, self.upper, self.lower), delta)

    def project(self, delta: Tensor) -> Tensor:
        """A point of the set near delta."""
        return self.bound.project(delta, self.threshold, self.lower, self.upper)

    def project_to_level(self, delta: Tensor, level: Tensor) -> Tensor:
        """A point near delta of {threat <= level * threshold} and the box; level [B] > 0.

        The threat is homogeneous: after division by the levels, all examples have the same threshold. A radius that is
        also a member of the threat does not bound the box here, since it is part of the level.
        """
        t, (lower, upper) = per_image(level), self._box_beside_members
        unit = self.bound.project(delta / t, self.threshold, lower / t, upper / t)
        return torch.minimum(torch.maximum(unit * t, lower), upper)

    @cached_property
    def _box_beside_members(self) -> tuple[Tensor, Tensor]:
        """The bounds without a radius that is also a member of the threat; fixed pixels are still fixed."""
        members = getattr(self.bound, "members", ())
        if not any(type(member) is BoundLinf for member, _ in members):
            return self.lower, self.upper
        examples = self.bound.examples
        return torch.where(self.lower < 0, -examples, 0), torch.where(self.upper > 0, 1 - examples, 0)

    def holds(self, delta: Tensor) -> Tensor:
        """[B] bool: the points that are in the set."""
        in_box = at_most(delta, self.upper) & at_most(-delta, -self.lower)
        return in_box.flatten(1).all(1) & at_most(self.bound.evaluate(delta), self.threshold)


@dataclass(frozen=True)
class Task:
    """The input of every attack.

    allowed       the set of allowed points around examples [B,C,H,W], with labels [B]
    robust        [B] bool: the examples to attack
    seed, index   the only inputs of the random numbers, beside an attack's own draw; index [B] is that in the data set
    steps         number of gradient steps in one run
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
        """The clean images, [B,C,H,W]."""
        return self.allowed.bound.examples

    def best_so_far(self) -> BestSoFar:
        """A new record of the model's answers for the examples to attack."""
        return BestSoFar(self.model, self.labels, self.allowed, self.robust)

    def after(self, result: AttackResult) -> Task:
        """The same task, for the examples on which a result has no success."""
        return replace(self, robust=self.robust & ~result.success)

    def likeliest_others(self, count: int) -> Tensor:
        """The classes, except the label, that the model finds most likely on the clean images, [B, at most count]."""
        with torch.no_grad():
            logits = self.model(self.examples)
        others = logits.scatter(1, self.labels.view(-1, 1), -torch.inf)
        return others.argsort(1, descending=True)[:, : min(count, logits.shape[1] - 1)]


@dataclass(frozen=True)
class AttackResult:
    """The result of an attack.

    success    [B] bool: the model misclassifies the point
    delta      [B,C,H,W] a point of the set: the first one with success, else the one of largest loss
    loss       [B] margin at delta: largest other logit minus the label's logit, above 0 on success
    forwards, backwards   [B] passes of each example while it was under attack
    """

    success: Tensor
    delta: Tensor
    loss: Tensor
    forwards: Tensor
    backwards: Tensor

    @classmethod
    def none(cls, origin: Tensor) -> AttackResult:
        """The result before any query: no success, no passes, and the points `origin`, which change nothing."""
        count = torch.zeros(len(origin), dtype=torch.long, device=origin.device)
        loss = torch.full((len(origin),), -torch.inf, device=origin.device)
        return cls(count.bool(), origin, loss, count, count.clone())

    def then(self, other: AttackResult) -> AttackResult:
        """Combine this result with a later one for its robust examples: keep the better points, add the passes."""
        better = ~self.success & (other.success | (other.loss > self.loss))
        return AttackResult(
            self.success | other.success,
            torch.where(per_image(better), other.delta, self.delta),
            torch.where(better, other.loss, self.loss),
            self.forwards + other.forwards,
            self.backwards + other.backwards,
        )


class BestSoFar:
    """Queries of the model at points of the set, and the best point of each example so far."""

    def __init__(self, model: Classifier, labels: Tensor, allowed: AttackSet, robust: Tensor) -> None:
        self.model, self.labels, self.allowed, self.robust = model, labels, allowed, robust
        self.result = AttackResult.none(allowed.origin)
        self.best_loss = self.result.loss.clone()

    @property
    def active(self) -> Tensor:
        """[B] bool: the examples still under attack."""
        return self.robust & ~self.result.success

    def ask(self, delta: Tensor, loss: Loss = LOSSES["margin"], targets: Tensor | None = None) -> Tensor:
        """The loss at delta, [B], without a gradient."""
        with torch.no_grad():
            return self._note(delta, self.model(self.allowed.image(delta)), loss, targets)

    def ask_gradient(self, delta: Tensor, loss: Loss, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss at delta, [B], and its gradient for delta only; the weights get no gradients."""
        inputs = self.allowed.image(delta).detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.model(inputs)
            gradient = input_gradient(loss(logits, self.labels, targets).sum(), inputs)
        counted = self.result.backwards + self.active
        noted = self._note(delta, logits.detach(), loss, targets)
        self.result = replace(self.result, backwards=counted)
        return noted, self.allowed.pull_back(gradient, delta)

    def _note(self, delta: Tensor, logits: Tensor, loss: Loss, targets: Tensor | None) -> Tensor:
        answers = predicted(logits)
        lost = answers == NO_CLASS  # NaN answers count as errors of infinite loss
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
    """The gradient of a sum for the inputs; missing gradients and entries that are not finite become 0.

    Such examples are left to the attacks that need no gradients.
    """
    if not value.requires_grad:
        return torch.zeros_like(inputs)
    (gradient,) = torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=keep)
    return torch.zeros_like(inputs) if gradient is None else gradient.nan_to_num(0, 0, 0)


def per_image(values: Tensor) -> Tensor:
    """Reshape [B] to [B,1,1,1]."""
    return values.view(-1, 1, 1, 1)


Attack = Callable[[Task], AttackResult]
