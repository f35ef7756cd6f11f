"""Base classes of threats, and checks of their inputs.

Shapes in this package: B batch, C channels, H height, W width, D = C*H*W, N anchors, K classes.
Images lie in [0, 1]; a perturbation is `delta` = perturbed - example, [B, C, H, W].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from foundations.errors import UsageError, check_number, kind_of

CONTEXT = ("masks", "indices")  # arguments that some threats take for each example besides its label
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # types of labels
BESIDE_ROUNDS, BESIDE_HALVINGS = 10, 12  # of `BoundThreat.project_beside`
ROUNDING_SHRINKS = (1e-6, 1e-5, 1e-4)  # relative shrinks of delta, tried in this order


class Measure(ABC):
    """A size of perturbations that can be evaluated, but not projected onto (SSIM, LPIPS, ...)."""

    name: str = "measure"

    @abstractmethod
    def evaluate(self, examples: Tensor, labels: Tensor, perturbed_examples: Tensor) -> Tensor:
        """Size of the perturbation of each perturbed example, [B] float32, at least 0."""

    def __call__(self, examples: Tensor, labels: Tensor, perturbed_examples: Tensor, **context: Any) -> Tensor:
        """The same as `evaluate`."""
        return self.evaluate(examples, labels, perturbed_examples, **context)


class BoundThreat(ABC):
    """A threat at fixed (examples, labels), for attack loops; caches everything that depends on these alone.

    The threat must be convex and positively homogeneous in `delta`: then its sublevel sets are convex, and
    a perturbation that is shrunk towards 0 stays inside them.
    """

    steepest = "l2"  # norm for the steepest direction in attacks: a key of attacks.base.DIRECTIONS

    def __init__(self, examples: Tensor) -> None:
        self.examples = examples

    @abstractmethod
    def evaluate(self, delta: Tensor) -> Tensor:
        """Threat of each perturbation, [B] float32."""

    @abstractmethod
    def project(
        self, delta: Tensor, threshold: float, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Tensor:
        """A point near delta with threat <= threshold and lower <= point <= upper (default: the pixel box).

        Bounds are [B, C, H, W] with lower <= 0 <= upper. A feasible delta is returned bit-identical.
        """

    def inscribed_radius(self) -> Tensor | None:
        """Radius of the l2 ball around 0 that lies inside {threat <= 1}, [B]; None if it is not known."""
        return None

    def usual_change(self, threshold: float) -> float | None:
        """Change of each pixel, if all change equally, where the threat reaches the threshold; None if not known."""
        return None

    @property
    def counted(self) -> Tensor | None:
        """[B, D] 0/1: the pixels whose change a radius beside the threat bounds; None: all."""
        return None

    def bounds(self, lower: Tensor | None, upper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The given bounds; each one that is None is replaced by the bound that keeps pixels in [0, 1]."""
        return (-self.examples if lower is None else lower, 1 - self.examples if upper is None else upper)

    def scale(
        self, delta: Tensor, threshold: float, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Tensor:
        """Clip to the bounds, then shrink towards 0 until the threat is at most the threshold.

        Needs one evaluation. The result is in the set, but in general not its nearest point.
        """
        lower, upper = self.bounds(lower, upper)
        clipped = torch.minimum(torch.maximum(delta, lower), upper)
        threat = self.evaluate(clipped)
        # The factor 1 - 5e-7 compensates for rounding in the product; it can only shrink.
        factor = torch.where(threat > threshold, threshold / threat.clamp_min(1e-38) * (1 - 5e-7), 1.0)
        return clipped * factor.view(-1, *[1] * (delta.dim() - 1))

    def project_beside(
        self, delta: Tensor, threshold: float, lower: Tensor, upper: Tensor, centre: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A point near delta with threat <= threshold in a box that need not contain 0, and [B] bool: if one was found.

        centre   [B,C,H,W] a point of the box; where its threat is at most the threshold, a point is found

        Threats with an exact projection find the nearest point. This one takes turns between the sets of `projections`
        and the box (the algorithm of Dykstra), and shrinks towards the centre what is outside after that.
        """
        point = torch.minimum(torch.maximum(delta, lower), upper)
        if bool((self.evaluate(point) <= threshold).all()):
            return point, torch.ones(len(point), dtype=torch.bool, device=point.device)
        projections = self.projections(threshold, lower.clamp_max(0), upper.clamp_min(0))
        of_sets, of_box = [torch.zeros_like(point) for _ in projections], delta - point
        for _ in range(BESIDE_ROUNDS):
            for i, project in enumerate(projections):
                shifted = point + of_sets[i]
                point = project(shifted)
                of_sets[i] = shifted - point
            shifted = point + of_box
            point = torch.minimum(torch.maximum(shifted, lower), upper)
            of_box = shifted - point
        return self._towards(centre, point, threshold)

    def projections(self, threshold: float, lower: Tensor, upper: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """Projections onto convex sets whose intersection is {threat <= threshold} in these bounds around 0."""
        return [lambda delta: self.project(delta, threshold, lower, upper)]

    def _towards(self, centre: Tensor, point: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """The point, or the one nearest to it on its line to the centre with threat <= threshold; and if there is one.

        The threat is convex, so that the shares of the way that are inside are an interval from the centre on.
        """
        holds = self.evaluate(point) <= threshold
        found = holds | (self.evaluate(centre) <= threshold)
        low, high = holds.to(point.dtype), torch.ones_like(point[:, 0, 0, 0])
        for _ in range(BESIDE_HALVINGS):
            middle = (low + high) / 2
            inside = self.evaluate(centre + middle.view(-1, 1, 1, 1) * (point - centre)) <= threshold
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        line = centre + low.view(-1, 1, 1, 1) * (point - centre)
        return torch.where(holds.view(-1, 1, 1, 1), point, line), found


class Threat(Measure):
    """A measure with sublevel sets that can be projected onto. Subclasses implement `bind`; see docs/extending.md."""

    name: str = "threat"
    segmented: bool = False  # whether `bind` takes the arguments in CONTEXT
    bounded: bool = False  # whether its sets are bounded by themselves, as balls are, and need no radius beside them

    @property
    def rows(self) -> int | None:
        """Images of the data set whose row numbers `bind` needs, as masks of a file do; None: it needs none."""
        return None

    def prepare(self, num_devices: int = 1) -> Self:
        """Load the data that the threat needs and place it on the devices; returns self."""
        return self

    def session(self) -> AbstractContextManager[None]:
        """A block around all use of the threat by processes that work on different examples; all enter it and leave it.

        Only a threat whose data is divided over processes needs it; for all others it does nothing.
        """
        return nullcontext()

    @abstractmethod
    def bind(self, examples: Tensor, labels: Tensor) -> BoundThreat:
        """Fix (examples [B,C,H,W] in [0, 1], labels [B]) and cache everything that depends on these alone."""

    def evaluate(self, examples: Tensor, labels: Tensor, perturbed_examples: Tensor, **context: Any) -> Tensor:
        """Threat of each perturbed example (any finite values), [B] float32; `context` goes to `bind`."""
        check_images(examples, labels, perturbed_examples)
        return self.bind(examples, labels, **context).evaluate(difference(perturbed_examples, examples))

    def project(
        self,
        examples: Tensor,
        labels: Tensor,
        perturbed_examples: Tensor,
        threshold: float = 0.1,
        return_threats: bool = False,
        **options: Any,
    ) -> Any:
        """Project perturbed examples onto {threat <= threshold} and the pixel box; [B,C,H,W] in [0, 1].

        Rows that are already feasible are returned bit-identical. Options named in `CONTEXT` go to `bind`, all others
        to `BoundThreat.project`. With return_threats, the threats [B] of the projected examples are returned too.
        """
        check_images(examples, labels, perturbed_examples)
        check_threshold(threshold)
        context = {name: options.pop(name) for name in CONTEXT if name in options}
        bound = self.bind(examples, labels, **context)
        delta = difference(perturbed_examples, examples)
        projected = bound.project(delta, threshold, **options)
        in_box = (perturbed_examples >= 0) & (perturbed_examples <= 1)
        unchanged = ((projected == delta) & in_box).flatten(1).all(1).view(-1, 1, 1, 1)
        moved = torch.where(unchanged, perturbed_examples, _into_pixels(bound, projected, threshold))
        return (moved, bound.evaluate(difference(moved, examples))) if return_threats else moved


def _into_pixels(bound: BoundThreat, delta: Tensor, threshold: float) -> Tensor:
    """x + delta in [0, 1]; if rounding this sum to float32 moved it out of the set, delta is shrunk slightly.

    At threshold 0 shrinking does not help: a threat of about 1e-8 may remain.
    """
    moved = (bound.examples + delta).clamp(0, 1)
    for shrink in ROUNDING_SHRINKS:
        outside = bound.evaluate(moved - bound.examples) > threshold * (1 + 5e-7)
        if not bool(outside.any()):
            break
        delta = torch.where(outside.view(-1, 1, 1, 1), delta * (1 - shrink), delta)
        moved = (bound.examples + delta).clamp(0, 1)
    return moved


def difference(perturbed_examples: Tensor, examples: Tensor) -> Tensor:
    """perturbed - example in float32; 16-bit numbers are converted before the subtraction, not after."""
    wide = torch.promote_types(torch.promote_types(perturbed_examples.dtype, examples.dtype), torch.float32)
    return (perturbed_examples.to(wide) - examples.to(wide)).float()


def check_delta(delta: Tensor, examples: Tensor) -> None:
    """Raise UsageError for a perturbation of another shape, which would be broadcast, or on another device."""
    if delta.shape != examples.shape:
        raise UsageError(f"delta: expected shape {list(examples.shape)}, got {list(delta.shape)}")
    _check_device("delta", delta, examples)


def _check_device(name: str, values: Tensor, examples: Tensor) -> None:
    if values.device != examples.device:
        raise UsageError(
            f"{name}: expected them on {examples.device}, where the examples are, got {values.device}; "
            f"use {name}.to(examples.device)"
        )


def refuse_non_finite(name: str, values: Tensor) -> None:
    """Raise UsageError for NaN and infinity, which later comparisons could turn into a threat of 0."""
    if not math.isfinite(values.detach().sum().item()):
        raise UsageError(f"{name}: expected finite values, got NaN or infinity, or numbers too large for float32")


def check_images(examples: Tensor, labels: Tensor, perturbed_examples: Tensor | None = None) -> None:
    """Raise UsageError for what is no tensor, wrong shapes, several devices, examples outside [0, 1], labels that are
    no class, NaN and infinity."""
    for name, values in (("examples", examples), ("labels", labels), ("perturbed_examples", perturbed_examples)):
        if not isinstance(values, Tensor) and not (values is None and name == "perturbed_examples"):
            raise UsageError(f"{name}: expected a tensor, got a {type(values).__name__}; use torch.as_tensor")
    if examples.dim() != 4 or not examples.is_floating_point():
        raise UsageError(
            f"examples: expected floats [B,C,H,W] in [0, 1], got {examples.dtype} of shape {list(examples.shape)}"
        )
    if labels.shape != examples.shape[:1] or labels.dtype not in WHOLE:
        raise UsageError(f"labels: expected {len(examples)} integers, got {labels.dtype} of shape {list(labels.shape)}")
    _check_device("labels", labels, examples)
    if len(examples) and not bool((examples >= 0).all() & (examples <= 1).all() & (labels >= 0).all()):
        if bool((labels < 0).any()):
            raise UsageError(f"labels: expected classes from 0 up, got {int(labels.min())}")
        raise UsageError("examples: expected values in [0, 1], got some outside or NaN; scale pixels to [0, 1]")
    if perturbed_examples is None:
        return
    if not perturbed_examples.is_floating_point():
        raise UsageError(
            f"perturbed_examples: expected floats, in which 1 is white, got {perturbed_examples.dtype}; "
            "divide bytes by 255"
        )
    if perturbed_examples.shape != examples.shape:
        raise UsageError(
            f"perturbed_examples: expected shape {list(examples.shape)}, got {list(perturbed_examples.shape)}"
        )
    _check_device("perturbed_examples", perturbed_examples, examples)
    if not bool(perturbed_examples.isfinite().all()):
        raise UsageError("perturbed_examples: expected finite values, got NaN or infinity")


def check_threshold(threshold: float) -> None:
    """Raise UsageError for a threshold that is negative, not finite or no number."""
    check_number("threshold", threshold)


def check_set(threat: Threat, threshold: float, radius: float | None) -> None:
    """Raise UsageError unless this is a set {threat <= threshold, l-inf <= radius}; None is no radius."""
    if not isinstance(threat, Threat):
        raise UsageError(f"threat: expected one, such as nonisotropic.Linf(), got {kind_of(threat)}")
    check_threshold(threshold)
    if radius is not None:
        check_number("radius", radius, infinite=True)


def check_rows(threat: Threat, count: int) -> None:
    """Raise UsageError if a threat needs row numbers of a data set and these images are not all of it, in its order."""
    if threat.rows is not None and threat.rows != count:
        raise UsageError(
            f"images: expected all {threat.rows} that the threat's file has masks of, in their order, got {count}; "
            "write a file of the masks of these images, or take a mask source that looks at images"
        )


def check_seed(seed: int) -> None:
    """Raise UsageError for a seed that is no whole number of 64 bits."""
    check_number("seed", seed, -(2.0**63), 2.0**63, whole=True)
