"""The set of mixtures of safe changes plus small noise, inside a threat.

For an image x with safe changes C_1(x), ..., C_K(x) and s_k = C_k(x) - x, the allowed perturbations are

    d = n + sum_k c_k s_k,  |n|_inf <= radius,  c >= 0,  sum_k c_k <= 1,  threat(x, d) <= threshold,  0 <= x + d <= 1.

The set is convex. It reaches far along the safe changes and not far elsewhere. Attacks search over (n, c): a *point* is
[B,1,1,D+K], the noise first, then the weights times `unit`, so that all coordinates have the same range.

Shapes: B batch, C, H, W, D = C*H*W, K safe changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from foundations.arithmetic import full_precision
from foundations.errors import UsageError
from threat_specification.attacks.base import DIRECTIONS, AttackSet, at_most, normalised, per_image
from threat_specification.base import BoundThreat
from threat_specification.projected_displacement.bound import BoundProjectedDisplacement
from threat_specification.projected_displacement.lifted import LiftedDirections
from threat_specification.safe_moves.simplex import capped_simplex

SMALLEST = 1e-9  # smallest threshold and radius: the gauge divides by them
HALVINGS = 2  # bisections of the share of a mixture that noise must make possible
EDGE = 1e-6  # distance from 0 or 1 at which a pixel is at its end
INSIDE = 1 - 1e-5  # factor of a mixture that is scaled onto the border of the threat, against rounding


class SafeMoves:
    """The safe changes of a batch of images, and the threat that bounds their mixtures.

    threat    bound to the images
    changed   [B,K,C,H,W] the changed images C_k(x), in [0, 1]
    """

    def __init__(self, threat: BoundThreat, changed: Tensor) -> None:
        x = threat.examples
        for kind in _backgrounds(threat):
            if kind != "radius":
                raise UsageError(
                    f"safe changes: expected background='radius', since noise has one radius, got {kind!r}"
                )
        if changed.dim() != 5 or changed.shape[:1] + changed.shape[2:] != x.shape or not changed.shape[1]:
            raise UsageError(
                f"safe changes: expected [{len(x)},K,{','.join(map(str, x.shape[1:]))}] with K above 0, "
                f"got {list(changed.shape)}"
            )
        if not bool(((changed >= 0) & (changed <= 1)).all()):
            raise UsageError("safe changes: expected images in [0, 1], got some values outside or NaN")
        self.threat, self.examples = threat, x
        self.shifts = (changed - x.unsqueeze(1)).flatten(2)

    @property
    def count(self) -> int:
        """K, the number of safe changes of each image."""
        return self.shifts.shape[1]

    def unit(self, radius: float) -> Tensor:
        """A unit of the weights for noise of this radius, [B]: the length of a weight's step follows from it.

        With it, a step of about the radius in every pixel changes the weights by about 4 times the cosine between the
        gradient and a safe change. Optima do not depend on it, only the way there.
        """
        length = self.shifts.norm(dim=2).mean(1)
        noise = min(radius or 1.0, 1.0) * self.shifts.shape[2] ** 0.5
        return (length * noise / 2).sqrt().clamp_min(SMALLEST)

    @cached_property
    def threats(self) -> Tensor:
        """Threat of each safe change alone, [B,K]."""
        shifts = self.shifts.view(len(self.shifts), self.count, *self.examples.shape[1:])
        return torch.stack([self.threat.evaluate(shift) for shift in shifts.unbind(1)], 1)

    def single(self) -> Iterator[Tensor]:
        """The images of each safe change alone, [B,C,H,W] in [0, 1]."""
        for shift in self.shifts.unbind(1):
            yield (self.examples + shift.view_as(self.examples)).clamp(0, 1)

    def mixture(self, weights: Tensor) -> Tensor:
        """sum_k c_k s_k for weights [B,K], [B,C,H,W]."""
        with full_precision(weights.device.type):
            return torch.bmm(weights.unsqueeze(1), self.shifts).view_as(self.examples)


def _backgrounds(threat: BoundThreat) -> Iterator[str]:
    """Background of each threat with masks, those of members of an intersection too."""
    for member, _ in getattr(threat, "members", ()):
        yield from _backgrounds(member)
    if getattr(threat, "mask", None) is not None:
        yield getattr(threat, "background", "")


def _with_counters(threat: BoundThreat) -> Iterator[BoundProjectedDisplacement]:
    """The threats that count what their exact projection could not solve: this one, or members of an intersection."""
    if isinstance(threat, BoundProjectedDisplacement):
        yield threat
    for member, _ in getattr(threat, "members", ()):
        yield from _with_counters(member)


class BoundMixtures(BoundThreat):
    """The gauge of the set at a point: max(threat / threshold, |n|_inf / radius, sum of the weights).

    threshold, radius   of the set; threshold infinite: the threat does not bound it
    unit                [B, 1] of the weights' coordinates
    """

    def __init__(self, moves: SafeMoves, threshold: float, radius: float, unit: Tensor | None = None) -> None:
        """Keep the moves and the bounds; `unit` [B]: by default that for the radius."""
        super().__init__(moves.examples)
        self.moves, self.threshold, self.radius = moves, max(threshold, SMALLEST), min(radius, 1.0)
        self.unit = (moves.unit(self.radius) if unit is None else unit).unsqueeze(1)
        self.steepest = moves.threat.steepest

    def parts(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """The noise [B,C,H,W] and the weights [B,K] of a point."""
        flat = point.flatten(1)
        return flat[:, : -self.moves.count].reshape(self.examples.shape), flat[:, -self.moves.count :] / self.unit

    def join(self, noise: Tensor, weights: Tensor) -> Tensor:
        """The point with this noise and these weights."""
        return torch.cat([noise.flatten(1), weights * self.unit], 1).view(len(noise), 1, 1, -1)

    def change(self, point: Tensor) -> Tensor:
        """The perturbation d = n + sum_k c_k s_k of a point, [B,C,H,W]."""
        noise, weights = self.parts(point)
        return self.moves.mixture(weights) + noise

    def evaluate(self, delta: Tensor) -> Tensor:
        noise, weights = self.parts(delta)
        gauges = [noise.flatten(1).abs().amax(1) / max(self.radius, SMALLEST), weights.clamp_min(0).sum(1)]
        if math.isfinite(self.threshold):
            gauges.append(self.moves.threat.evaluate(self.change(delta)) / self.threshold)
        return torch.stack(gauges).amax(0)

    def project(
        self, delta: Tensor, threshold: float, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Tensor:
        """A point of the set, with all its bounds times `threshold`; `lower` and `upper` follow from them."""
        return self.project_to(delta, torch.full_like(delta[:, 0, 0, 0], threshold))

    def project_to(self, point: Tensor, level: Tensor) -> Tensor:
        """A point of the set near `point`, with all bounds times level [B] > 0 (but the sum of weights at most 1).

        Without the threat, the weights are projected onto the capped simplex, and the noise onto its box around their
        mixture. If the threat is too large there, both are projected together; the noise's box then is that of the
        mixture before. Last, the noise is projected exactly for the weights that were found.
        """
        noise, wanted = self.parts(point)
        weights, radius = capped_simplex(wanted, level.clamp_max(1)), per_image(self.radius * level)
        mixture = self.moves.mixture(weights)
        lower, upper = self._box(mixture, radius)
        total = torch.minimum(torch.maximum(mixture + noise, lower), upper)
        if math.isfinite(self.threshold):
            outside = self.moves.threat.evaluate(total) > self.threshold * level
            if bool(outside.any()):
                inside = per_image(~outside)
                noise = torch.where(inside, total - mixture, noise)
                wanted = torch.where(outside.unsqueeze(1), wanted, weights)
                weights, missed = self._together(noise, wanted, weights, level, radius)
                weights, total, found = self._inside_threat(weights, noise, level, radius)
                mixture = self.moves.mixture(weights)
                # A point counts once, whichever member of an intersection was not solved.
                if (counting := next(_with_counters(self.moves.threat), None)) is not None:
                    counting.scaled.add_(outside & (missed | ~found))
        return self.join((total - mixture).clamp(-radius, radius), weights)

    def _together(
        self, noise: Tensor, wanted: Tensor, weights: Tensor, level: Tensor, radius: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The weights [B,K] of the nearest point (noise, weights) to the wanted one, if the threat knows it.

        Returns them, and [B] bool: True where the solver does not find them, so that they are the given ones.

        The noise's box depends on the mixture; it is that of `weights`. A second solution, with the box of the weights
        found, makes attacks slower and no stronger.
        """
        if self._lifted is None:
            return weights, torch.zeros_like(level, dtype=torch.bool)
        t, cap, mixture = per_image(level), level.clamp_max(1), self.moves.mixture(weights)
        lower, upper = self._box(mixture, radius)
        none, most = torch.zeros_like(weights), cap.unsqueeze(1).expand_as(weights)
        bounds = self.join(lower - mixture, none) / t, self.join(upper - mixture, most) / t
        largest = self.unit.squeeze(1) * cap / level
        point, unsolved = self._lifted.project(self.join(noise, wanted) / t, self.threshold, largest, *bounds)
        found = self.parts(point * t)[1]
        found[unsolved] = weights[unsolved]
        missed = torch.zeros_like(level, dtype=torch.bool)
        missed[unsolved] = True
        return capped_simplex(found, cap), missed

    @cached_property
    def _lifted(self) -> LiftedDirections | None:
        return None if self._exact is None else LiftedDirections(self._exact, self.moves.shifts, self.unit)

    @property
    def _exact(self) -> BoundProjectedDisplacement | None:
        """The threat, if its projection is the exact one."""
        threat = self.moves.threat
        if not isinstance(threat, BoundProjectedDisplacement) or threat.projection != "exact":
            return None
        return threat

    def scale(
        self, delta: Tensor, threshold: float, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Tensor:
        """As that of every threat, with the weights on the capped simplex and pixels in [0, 1] first."""
        noise, weights = self.parts(delta)
        weights, radius = capped_simplex(weights), self.radius * threshold
        mixture = self.moves.mixture(weights)
        low, high = self._box(mixture, radius)
        clipped = self.join(torch.minimum(torch.maximum(mixture + noise, low), high) - mixture, weights)
        gauge = self.evaluate(clipped)
        factor = torch.where(gauge > threshold, threshold / gauge.clamp_min(1e-38) * (1 - 5e-7), 1.0)
        return clipped * per_image(factor)

    def _box(self, mixture: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        """Bounds of the whole perturbation around a mixture: the radius and the pixel box. They contain the mixture."""
        lower = torch.maximum(mixture - radius, -self.examples)
        upper = torch.minimum(mixture + radius, 1 - self.examples)
        return torch.minimum(lower, mixture), torch.maximum(upper, mixture)

    def _inside_threat(
        self, weights: Tensor, noise: Tensor, level: Tensor, radius: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The weights [B,K], shrunk where necessary, and the nearest perturbation in the set around their mixture.

        Returns with them [B] bool: False where the solver found none, not even for a mixture that needs no noise.

        A mixture whose own threat is too large is possible if noise can make up for it. Then the share of the mixture
        is bisected, between 1 and the share at which it needs no noise.
        """
        least = self._share_without_noise(weights, level)
        share, low = torch.ones_like(least), least
        total, found = torch.zeros_like(noise), torch.zeros_like(least, dtype=torch.bool)
        for attempt in range(HALVINGS + 2):
            mixture = self.moves.mixture(weights * share.unsqueeze(1))
            here, holds = self._nearest(mixture, mixture + noise, level, radius)
            total = torch.where(per_image(found), total, torch.where(per_image(holds), here, mixture))
            found = found | holds
            if bool(found.all()):
                break
            smaller = (share + low) / 2 if attempt < HALVINGS else low
            share = torch.where(found, share, smaller)
        return weights * share.unsqueeze(1), total, found

    def _share_without_noise(self, weights: Tensor, level: Tensor) -> Tensor:
        """The largest share of a mixture, up to 1, whose own threat is small enough, [B]; below 1 slightly smaller."""
        limit = self.threshold * level
        # The threat is convex: that of a mixture is at most the mixture of the threats.
        if not bool(((weights * self.moves.threats).sum(1) > limit).any()):
            return torch.ones_like(limit)
        threat = self.moves.threat.evaluate(self.moves.mixture(weights))
        return torch.where(threat > limit, INSIDE * limit / threat.clamp_min(1e-38), 1.0)

    def _nearest(self, mixture: Tensor, target: Tensor, level: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest perturbation to the target around a mixture, and whether there is one, [B] bool.

        The threat is homogeneous: after division by the levels, all examples have the same threshold.
        """
        t, (lower, upper) = per_image(level), self._box(mixture, radius)
        bounds = lower / t, upper / t
        point, found = self.moves.threat.project_beside(target / t, self.threshold, *bounds, mixture / t)
        return torch.minimum(torch.maximum(point * t, lower), upper), found


@dataclass(frozen=True)
class MixtureSet(AttackSet):
    """The set of points (noise, weights), as attacks need it; the gauge is at most 1 inside."""

    bound: BoundMixtures

    @classmethod
    def of(cls, moves: SafeMoves, threshold: float, radius: float) -> MixtureSet:
        """The set of mixtures of these moves with noise up to a radius, inside {threat <= threshold}."""
        return cls.around(BoundMixtures(moves, threshold, radius))

    @classmethod
    def around(cls, bound: BoundMixtures) -> MixtureSet:
        """The set of the points whose gauge is at most 1."""
        noise = torch.full_like(bound.examples, bound.radius)
        weights = noise.new_ones(len(noise), bound.moves.count)
        return cls(bound, 1.0, bound.join(-noise, 0 * weights), bound.join(noise, weights))

    @property
    def reach(self) -> Tensor:
        """The radius of the noise, or the unit of the weights without noise, [B,1,1,1]."""
        unit = per_image(self.bound.unit)
        return torch.full_like(unit, self.bound.radius) if self.bound.radius else unit

    @property
    def pixel_reach(self) -> Tensor:
        """The radius of the noise; without noise, the root mean square of what a safe change adds to a pixel."""
        shifts = self.bound.moves.shifts
        return self.reach if self.bound.radius else per_image(shifts.square().mean(2).sqrt().mean(1))

    def image(self, delta: Tensor) -> Tensor:
        return (self.bound.examples + self.bound.change(delta)).clamp(0, 1)

    def pull_back(self, gradient: Tensor, delta: Tensor) -> Tensor:
        """The gradient for (noise, weights): that of the image, and its product with each safe change.

        Where a pixel is 0 or 1, and the gradient leads out of that range, the noise can follow a change of the mixture,
        so that the pixel stays where it is: such pixels do not count for the weights.
        """
        bound, noise = self.bound, self.bound.parts(delta)[0]
        pixels = bound.examples + bound.change(delta)
        low = (pixels <= EDGE) & (gradient < 0) & (noise > -bound.radius)
        high = (pixels >= 1 - EDGE) & (gradient > 0) & (noise < bound.radius)
        counted = gradient.masked_fill(low | high, 0).flatten(1)
        along = torch.bmm(bound.moves.shifts, counted.unsqueeze(2)).squeeze(2)
        return torch.cat([gradient.flatten(1), along / bound.unit], 1).view_as(self.lower)

    def ascend(self, gradient: Tensor) -> Tensor:
        """The direction of steepest ascent, with root mean square about 1.

        The weights follow their gradient in proportion to that of the noise. Otherwise steps would end where the threat
        is exchanged between noise and weights at another rate than that of the loss.
        """
        count = self.bound.moves.count
        noise, weights = gradient[..., :-count], gradient[..., -count:]
        if not self.bound.radius:
            return torch.cat([torch.zeros_like(noise), normalised(weights)], 3)
        if self.steepest == "l2":
            return normalised(gradient)
        size = noise.abs().mean(3, keepdim=True).clamp_min(torch.finfo(noise.dtype).tiny)
        return torch.cat([DIRECTIONS[self.steepest](noise), weights / size], 3)

    def corner(self, share: Tensor) -> Tensor:
        """A corner of the noise's box; the weights are as given, so that projection leaves a few of the largest."""
        count = self.bound.moves.count
        corners = super().corner(share)
        return torch.cat([corners[..., :-count], (share * self.upper)[..., -count:]], 3)

    def from_pixels(self, field: Tensor, more: Callable[[int], Tensor]) -> Tensor:
        return torch.cat([field.flatten(1), more(self.bound.moves.count)], 1).view_as(self.lower)

    def with_window(self, delta: Tensor, inside: Tensor, up: Tensor, chance: Tensor) -> Tensor:
        """As for pixels; and the mixture goes towards one safe change, by the window's share of the image."""
        noise, weights = self.bound.parts(delta)
        limits, _ = self.bound.parts(self.upper)
        noise = torch.where(inside, torch.where(up, limits, -limits), noise)
        share = inside.flatten(1).float().mean(1, keepdim=True)
        chosen = (chance * self.bound.moves.count).long().clamp_max(self.bound.moves.count - 1)
        vertex = torch.nn.functional.one_hot(chosen, self.bound.moves.count)
        return self.bound.join(noise, weights + share * (vertex - weights))

    def project_to_level(self, delta: Tensor, level: Tensor) -> Tensor:
        return self.bound.project_to(delta, level)

    def holds(self, delta: Tensor) -> Tensor:
        noise, weights = self.bound.parts(delta)
        pixels = self.bound.examples + self.bound.change(delta)
        flat = [at_most(pixels, 1.0), at_most(-pixels, 0.0), at_most(noise.abs(), self.bound.parts(self.upper)[0])]
        lawful = torch.stack([each.flatten(1).all(1) for each in flat]).all(0)
        lawful = lawful & at_most(-weights, 0.0).all(1) & at_most(weights.sum(1), 1.0)
        threat = self.bound.moves.threat.evaluate(self.bound.change(delta))
        return lawful & at_most(threat, self.bound.threshold)
