"""Intersection of the sets of several threats, each with its own level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor
from typing_extensions import Self

from foundations.errors import UsageError
from threat_specification.ball import nearest_in_ball
from threat_specification.base import BoundThreat, Threat, check_delta, check_threshold, refuse_non_finite
from threat_specification.norms import BoundL2, BoundLinf
from threat_specification.projected_displacement.bound import BoundProjectedDisplacement
from threat_specification.projected_displacement.dual_newton import ACCEPT
from threat_specification.projected_displacement.joined import BoundJoined
from threat_specification.projected_displacement.masks import free

DYKSTRA_ROUNDS = 100
DYKSTRA_TOLERANCE = 1e-6  # in pixel values: stop after a round in which no projection moved a pixel by more


@dataclass(frozen=True)
class Parts:
    """The sets of the members of an intersection, at one threshold.

    lower, upper   the bounds, within those of the l-inf balls, which are boxes
    others         the other members, each with its own threshold
    ball           the smallest l2 ball beside others; alone, it is one of them
    """

    lower: Tensor
    upper: Tensor
    others: list[tuple[BoundThreat, float]]
    ball: tuple[BoundThreat, float] | None = None

    @property
    def radius(self) -> float | None:
        return self.ball and self.ball[1]

    @property
    def all(self) -> list[tuple[BoundThreat, float]]:
        """The others, and the ball."""
        return [*self.others, self.ball] if self.ball else self.others


class BoundIntersection(BoundThreat):
    """max_i threat_i / level_i at fixed (examples, labels): the gauge of the intersection.

    joined     the members that are exact PD threats as one threat, if there are several; their half-spaces are one set
    stopped    [B] how often members took turns in vain, so that a point of the set stands for the nearest one
    """

    def __init__(self, examples: Tensor, members: Sequence[tuple[BoundThreat, float]]) -> None:
        super().__init__(examples)
        self.members = members
        self.steepest = "sign" if all(member.steepest == "sign" for member, _ in members) else "l2"
        exact = [(member, level) for member, level in members if _is_exact(member)]
        self.joined = BoundJoined(exact) if len(exact) > 1 else None
        self.stopped = torch.zeros(len(examples), dtype=torch.int64, device=examples.device)

    def evaluate(self, delta: Tensor) -> Tensor:
        return torch.stack([member.evaluate(delta) / level for member, level in self.members]).amax(0)

    def bounds(self, lower: Tensor | None, upper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The given bounds or the pixel box, within those of every member, as a frozen background has them.

        A background that is free for all members is bounded by the pixel box alone.
        """
        given = lower, upper = super().bounds(lower, upper)
        for member, _ in self.members:
            low, high = member.bounds(lower, upper)
            lower, upper = torch.maximum(lower, low), torch.minimum(upper, high)
        if self.counted is None:
            return lower, upper
        inside, examples = self.counted.view_as(lower) > 0, self.examples.to(lower.dtype)
        low, high = free(*given, inside, examples)
        return torch.where(inside, lower, low), torch.where(inside, upper, high)

    @property
    def counted(self) -> Tensor | None:
        """The pixels that any member counts; None if one counts all."""
        counts = [member.counted for member, _ in self.members]
        known = [pixels for pixels in counts if pixels is not None]
        return torch.stack(known).amax(0) if len(known) == len(counts) else None

    def usual_change(self, threshold: float) -> float | None:
        """The smallest of the members' that are known."""
        changes = [member.usual_change(threshold * level) for member, level in self.members]
        return min((change for change in changes if change is not None), default=None)

    @property
    def scaled(self) -> Tensor:
        """Number of points of each example that exact projections could not solve, [B]."""
        none = torch.zeros_like(self.stopped)
        asked = [*(member for member, _ in self.members), *([self.joined] if self.joined else [])]
        return sum((getattr(member, "scaled", none) for member in asked), self.stopped)

    def inscribed_radius(self) -> Tensor | None:
        """The smallest of the members' radii, scaled by their levels; None if one is not known."""
        radii = [(member.inscribed_radius(), level) for member, level in self.members]
        known = [radius * level for radius, level in radii if radius is not None]
        return torch.stack(known).amin(0) if len(known) == len(radii) else None

    def project(
        self, delta: Tensor, threshold: float, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Tensor:
        """Project onto {threat_i <= threshold * level_i for all i} and the bounds.

        l-inf balls only tighten the bounds, and exact PD members are one. The nearest point in one other member, in l2
        balls, or in both is found by projections onto that member; several others take turns (Dykstra's algorithm).
        """
        check_delta(delta, self.examples)
        refuse_non_finite("delta", delta)
        parts = self._split(threshold, *self.bounds(lower, upper))
        lower, upper = parts.lower, parts.upper
        if not parts.others:
            return torch.minimum(torch.maximum(delta, lower), upper)
        if len(parts.others) == 1:
            (member, level), radius = parts.others[0], parts.radius
            project = _onto(member, level, lower, upper)
            point = project(delta) if radius is None else nearest_in_ball(project, delta, radius)
        else:
            point, going = _dykstra(delta, parts.all, lower, upper)
            self.stopped += going
        # A background that is free for one member, which does not measure it, is bounded by others that do.
        return torch.minimum(torch.maximum(point, lower), upper)

    def project_beside(
        self, delta: Tensor, threshold: float, lower: Tensor, upper: Tensor, centre: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As that of every threat; with at most one member beside balls it is made of projections onto that member."""
        parts = self._split(threshold, lower, upper)
        low, high, radius = parts.lower, torch.maximum(parts.lower, parts.upper), parts.radius
        if len(parts.others) != 1:
            return super().project_beside(delta, threshold, lower, upper, centre)
        member, level = parts.others[0]
        point, found = member.project_beside(delta, level, low, high, centre)
        if radius is not None and bool((point.flatten(1).norm(dim=1) > radius).any()):
            beside = lambda target: member.project_beside(target, level, low, high, centre)[0]  # noqa: E731
            point = nearest_in_ball(beside, delta, radius, beside(torch.zeros_like(delta)))
            inside = self.evaluate(point) <= threshold * (1 + ACCEPT)
            line, found = self._towards(centre, point, threshold)
            point, found = torch.where(inside.view(-1, 1, 1, 1), point, line), inside | found
        return point, found & (parts.lower <= parts.upper).flatten(1).all(1)

    def projections(self, threshold: float, lower: Tensor, upper: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """Projections onto the sets of the members, one each, but that l-inf balls are bounds."""
        parts = self._split(threshold, lower, upper)
        return [_onto(member, level, parts.lower, parts.upper) for member, level in parts.all]

    def _split(self, threshold: float, lower: Tensor, upper: Tensor) -> Parts:
        """The members' sets at a threshold, as balls and others."""
        balls, others = [], []
        for member, level in self.members:
            if type(member) is BoundLinf:
                lower, upper = member.tighten(lower, upper, threshold * level)
            elif type(member) is BoundL2:
                balls.append((member, threshold * level))
            elif not (self.joined and _is_exact(member)):
                others.append((member, threshold * level))
        if self.joined:
            others.append((self.joined, threshold))
        smallest = min(balls, key=lambda ball: ball[1], default=None)
        if smallest and not others:
            return Parts(lower, upper, [smallest])
        return Parts(lower, upper, others, smallest)


def _onto(member: BoundThreat, level: float, lower: Tensor, upper: Tensor) -> Callable[[Tensor], Tensor]:
    """The projection onto a member's set in these bounds."""
    return lambda delta: member.project(delta, level, lower, upper)


def _is_exact(member: BoundThreat) -> TypeGuard[BoundProjectedDisplacement]:
    """True of a PD threat in any form that is projected onto exactly."""
    return type(member) is BoundProjectedDisplacement and member.projection == "exact"


def _dykstra(
    delta: Tensor, members: list[tuple[BoundThreat, float]], lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """Nearest point of an intersection of convex sets (Boyle and Dykstra 1986), each of them cut by the bounds.

    Returns it, and [B] bool: True where DYKSTRA_ROUNDS did not suffice, so that it is only a point of the set.

    The point can stay still for some rounds while the corrections still grow, so both must have converged (Birgin and
    Raydan 2005). `change` measures both: a projection changes the point and its correction by the same amount.
    """
    point = delta
    corrections = [torch.zeros_like(delta) for _ in members]
    going = torch.ones(len(delta), 1, 1, 1, dtype=torch.bool, device=delta.device)  # a point stops by itself alone
    for _ in range(DYKSTRA_ROUNDS):
        change = torch.zeros_like(delta)
        for i, (member, level) in enumerate(members):
            before, shifted = point, point + corrections[i]
            point = torch.where(going, member.project(shifted, level, lower, upper), point)
            change = torch.maximum(change, (before - point).abs())
            corrections[i] = shifted - point
        going &= (change > DYKSTRA_TOLERANCE).flatten(1).any(1).view_as(going)
        if not bool(going.any()):
            break
    # Dykstra's iterates only converge to the set. Shrinking puts the point inside it: no member's set is left by that.
    for member, level in members:
        point = member.scale(point, level, lower, upper)
    return point, going.flatten()


class Intersection(Threat):
    """Intersection([(threat, level), ...]): value 1 is the boundary of {threat_i <= level_i for all i}.

    At threshold t its set is {threat_i <= t * level_i for all i}. Levels are finite and above 0, each in the units of
    its threat; UsageError is raised for others.

    >>> both = nonisotropic.Intersection([(nonisotropic.L2(), 0.5), (nonisotropic.Linf(), 8 / 255)])
    >>> images, labels = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    >>> both.evaluate(images, labels, images + 4 / 255).round(decimals=4)
    tensor([0.5000])
    """

    def __init__(self, members: Sequence[tuple[Threat, float]]) -> None:
        if not members:
            raise UsageError("Intersection: expected at least one (threat, level), got none")
        for member in members:
            if not isinstance(member, (tuple, list)) or len(member) != 2 or not isinstance(member[0], Threat):
                raise UsageError(f"Intersection: expected pairs (threat, level), got {member!r}")
            level = member[1]
            check_threshold(level)
            if level == 0:
                raise UsageError("Intersection: expected levels > 0, got 0; scale the members' thresholds instead")
        self.members = list(members)
        self.segmented = any(threat.segmented for threat, _ in members)
        self.bounded = any(threat.bounded for threat, _ in members)
        self.name = ",".join(f"{threat.name}@{level:g}" for threat, level in members)

    @property
    def rows(self) -> int | None:
        return next((threat.rows for threat, _ in self.members if threat.rows is not None), None)

    def prepare(self, num_devices: int = 1) -> Self:
        for threat, _ in self.members:
            threat.prepare(num_devices)
        return self

    def bind(self, examples: Tensor, labels: Tensor, **context: Any) -> BoundIntersection:
        """Bind all members; masks and data set indices go to the segmented ones."""
        members = [
            (threat.bind(examples, labels, **(context if threat.segmented else {})), level)
            for threat, level in self.members
        ]
        return BoundIntersection(examples.float(), members)
