"""Exact answers for small networks: is there an image in the set that another class wins, or is there none?

An attack gives an upper bound of robust accuracy. For a network of ReLUs and a threat of half-spaces, branch and bound
over signs of units and a mixed-integer program decide. Nothing is taken on trust: a point counts only if the network
itself, in float32, answers with another class there and the threat holds (as for attacks). An image counts as robust
only if all margins are below -TOLERANCE, over a set that contains every point which could count.

Values of the by columns: -1 misclassified without any attack; 0 undecided; 1 broken by attacks before; 2 decided by
bounds of all units; 3 decided by the program; 4 by branch and bound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from foundations.errors import UsageError, check_number
from foundations.modes import evaluation_mode
from testing.arguments import Given, refuse_autocast
from testing.evaluations import AttackEvaluation, refuse_no_answers
from testing.exact_bounds import PROGRAMS, Region, UnitBounds
from testing.exact_branches import branched, can_branch
from testing.exact_cones import ConeBounds, has_cones
from testing.exact_network import Network, Value
from testing.exact_program import ANY, EXACT, Program
from testing.exact_units import BranchedBounds, has_layers
from testing.shards import Shard
from threat_specification.attacks.base import NO_CLASS, SLACK, AttackResult, predicted
from threat_specification.attacks.losses import LOSSES
from threat_specification.attacks.registry import attacks_named
from threat_specification.attacks.search import Cell, Search
from threat_specification.base import BoundThreat, Threat
from threat_specification.intersection import BoundIntersection
from threat_specification.norms import BoundLinf
from threat_specification.projected_displacement.bound import BoundProjectedDisplacement

SECONDS = 60.0  # for one image
TOLERANCE = 1e-5  # a margin counts as below 0 only from here, times 1 + |margin of the clean image|
NOISES = 10  # and from this many times what float32 was seen to round
FEW = 16  # with at most this many open units, the program is quicker than better bounds of them
MANY = 32  # with more, branch and bound comes before the program
SHARE = 1 / 3  # of the time left, for these bounds at most
BRANCHES = 3 / 4  # of the time left then, for branch and bound, which decides more; the program has the rest
QUICK = ("momentum_ce", "momentum_targeted")  # attacks that come first in Python

WRONG, UNDECIDED, BY_ATTACK, BY_BOUNDS, BY_PROGRAM, BY_BRANCHES = -1, 0, 1, 2, 3, 4

COLUMNS: dict[str, str | tuple[str, int]] = {
    "exact_robust": "bool",
    "exact_broken": "bool",
    "exact_margin": "float32",
    "exact_by": "int64",
    "exact_seconds": "float32",
}
CLOCK = "exact_seconds"  # differs from run to run


@dataclass(frozen=True)
class ExactAnswers:
    """The result of `exact_robustness`; all fields have one entry for each image.

    robust   proven: no image of the set is misclassified
    broken   an image of the set, or the image itself, is misclassified
    margin   largest other logit minus that of the label: at `point` if broken, else an upper bound for all points
    by       what decided: "clean", "attack", "bounds", "branches" or "program"; "" if undecided
    point    [n,C,H,W] the misclassified image if broken, else the image itself
    """

    robust: Tensor
    broken: Tensor
    margin: Tensor
    by: list[str]
    point: Tensor


NAMES = {WRONG: "clean", UNDECIDED: "", BY_ATTACK: "attack", BY_BOUNDS: "bounds", BY_PROGRAM: "program"}
NAMES |= {BY_BRANCHES: "branches"}


def exact_robustness(
    model: nn.Module,
    images: Any,
    labels: Any,
    threat: Threat,
    threshold: float,
    radius: float | None = None,
    seconds: float = SECONDS,
    attacks: Sequence[str] = QUICK,
    optimum: bool = False,
    programs: int = PROGRAMS,
) -> ExactAnswers:
    """Decide for each image whether a point in {threat <= threshold, l-inf <= radius, pixel box} is misclassified.

    model    a small network of affine layers, ReLUs and max-pooling, [B,C,H,W] pixels in [0, 1] -> logits [B,K]
    threat   PD in any form, Linf, or an intersection of these
    radius   second bound, in l-inf (default: none for `bounded` threats, 8/255 for others; math.inf: none)
    seconds  time limit for each image
    attacks  names of attacks that come first; () for none
    optimum  find the largest margin of each image too (it is `margin`, up to 1e-4), which takes longer
    programs number of programs that tighten the bounds of single units, at most, for an image with many units of
             unknown sign; most often a third of the time ends before. With 0 branch and bound leaves them too

    Raises UsageError for a layer or a threat that the program cannot describe, and RunError if the model gives no
    finite answer for an image.
    """
    check_number("seconds", seconds, infinite=True)
    check_number("programs", programs, whole=True)
    given = Given.checked(model, images, labels, threat, threshold, radius)
    refuse_autocast("exact answers", given.images)
    with evaluation_mode(given.model):
        chosen = attacks_named(list(attacks), given.num_classes) if attacks else {}
        attacked = AttackEvaluation(given.model, threat, given.cell, chosen, steps=40, seed=0)
        index = torch.arange(len(given.labels), device=given.labels.device)
        with torch.no_grad():
            refuse_no_answers(predicted(given.model(given.images)) == NO_CLASS, index)
        network = Network.read(given.model, tuple(given.images.shape[1:]))
        shard = Shard(0, given.images, given.labels, index)
        found = ExactEvaluation(attacked, network, seconds, optimum=optimum, programs=programs)(shard)
    return ExactAnswers(
        found["exact_robust"],
        found["exact_broken"],
        found["exact_margin"],
        [NAMES[number] for number in found["exact_by"].tolist()],
        found["exact_image"],
    )


@dataclass(frozen=True)
class Known:
    """The result of attacks before: if they broke the image, the largest margin, and the image there if kept."""

    broken: bool
    margin: float
    image: Tensor | None = None


@dataclass
class ExactEvaluation:
    """The exact answer for each example of a shard, in the headline cell of an evaluation under attack.

    attacked  its model, threat and cell; its attacks run first, unless `known` says what they found
    known     data set index -> what attacks found before
    optimum   go on to the largest margin
    programs  programs that tighten the bounds of single units, at most, for each example
    """

    attacked: AttackEvaluation
    network: Network
    seconds: float = SECONDS
    known: Mapping[int, Known] | None = None
    optimum: bool = False
    programs: int = PROGRAMS
    columns: dict[str, str | tuple[str, int]] = field(default_factory=lambda: dict(COLUMNS))
    pictures: Sequence[str] = ("exact_image",)

    def __call__(self, shard: Shard) -> dict[str, Tensor]:
        # A threat that no program describes is refused before attacks take their time, whatever they would break.
        region_of(self.attacked.bind(_image(shard, 0)), self.attacked.headline)
        known = self._attack(shard) if self.known is None else self.known
        rows = [self._one(_image(shard, row), known) for row in range(len(shard.labels))]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _attack(self, shard: Shard) -> dict[int, Known]:
        """The results of the attacks, run on all examples together."""
        search, cell = self.attacked.search(shard), self.attacked.headline
        search.attack(cell, self.attacked.attacks)
        broken, images = (search.right & ~search.robust(cell)).tolist(), search.image(search.worst)
        index, losses = shard.index.tolist(), search.loss.tolist()
        return {n: Known(broken[k], losses[k], images[k : k + 1]) for k, n in enumerate(index)}

    def _one(self, part: Shard, every: Mapping[int, Known]) -> dict[str, Tensor]:
        begun = time.monotonic()
        case = Case(self.attacked, part, self.network, begun + self.seconds, self.optimum, self.programs)
        answer = case.decide(every.get(int(part.index), Known(False, -math.inf)))
        values = {
            "exact_robust": answer.robust,
            "exact_broken": answer.broken,
            "exact_margin": numpy.float32(rounded_up(torch.tensor(answer.margin, dtype=torch.float64)).item()),
            "exact_by": answer.by,
            "exact_seconds": numpy.float32(time.monotonic() - begun),
        }
        made = {name: torch.tensor([value], device=part.images.device) for name, value in values.items()}
        return made | {"exact_image": case.best}


def _image(shard: Shard, row: int) -> Shard:
    """One image of a shard."""
    rows = slice(row, row + 1)
    return Shard(shard.number, shard.images[rows], shard.labels[rows], shard.index[rows])


@dataclass(frozen=True)
class Answer:
    """Robust, broken, or neither (undecided); the margin as in ExactAnswers."""

    robust: bool
    broken: bool
    margin: float
    by: int


@dataclass
class Case:
    """One image, while it is being decided.

    part    a shard of this image alone
    end     when its time is over, on the monotonic clock
    programs as in ExactEvaluation
    best    [1,C,H,W] the misclassified image of largest margin found, else the image itself
    """

    attacked: AttackEvaluation
    part: Shard
    network: Network
    end: float
    optimum: bool
    programs: int
    best: Tensor = field(init=False)
    search: Search = field(init=False)

    def __post_init__(self) -> None:
        self.best = self.part.images
        self.search = self.attacked.search(self.part)
        self.clean = self._margin(self.part.images)
        self.tolerance = TOLERANCE * (1 + abs(self.clean))

    def decide(self, known: Known) -> Answer:
        """The cheap answers first: the image itself, attacks, bounds, and only then the program."""
        if not bool(self.search.right):
            return Answer(False, True, self.clean, WRONG)
        if known.broken:
            self.best = self.best if known.image is None else known.image
            if not self.optimum:
                return Answer(False, True, known.margin, BY_ATTACK)
        region = region_of(self.search.bound, self.search.headline).binding()
        self.tolerance = max(self.tolerance, NOISES * self._noise(region))
        margins = self._margins()
        bounds = UnitBounds.of(self.network, region)
        most = self._largest(bounds, margins)
        better = BranchedBounds if has_layers(self.network) else ConeBounds
        may_be_better = len(region.rows) or better is BranchedBounds or has_cones(self.network)
        if self._is_open(most) and may_be_better and bounds.open_units > FEW and self.programs:
            bounds = better.of(self.network, region, self.programs, time.monotonic() + SHARE * self._left())
            most = numpy.minimum(most, self._largest(bounds, margins))
        if not self._is_open(most):
            return Answer(True, False, float(most.max()), BY_BOUNDS)
        if not self.optimum and bounds.open_units > MANY and can_branch(self.network):
            found = branched(bounds, margins, most, -self.tolerance, time.monotonic() + BRANCHES * self._left())
            most = found.most
            if most.max() <= -self.tolerance:
                return Answer(True, False, float(most.max()), BY_BRANCHES)
            if self._verified(found.point):
                return Answer(False, True, self._margin(self.best), BY_BRANCHES)
        return self._by_program(Program(bounds), margins, most, max(known.margin, self.clean), known.broken)

    def _noise(self, region: Region) -> float:
        """The largest difference of the model's logits from the network's, at the image and two corners of its box."""
        image = self.part.images
        corners = (torch.from_numpy(side).to(image).view_as(image) for side in (region.lower, region.upper))
        points = torch.cat([image, *corners])
        with torch.no_grad():
            told = self.attacked.model(points).double().cpu().numpy()
        read = numpy.stack([self.network(point) for point in points.flatten(1).double().cpu().numpy()])
        return float(numpy.nan_to_num(abs(told - read), nan=numpy.inf).max())

    def _largest(self, bounds: UnitBounds, margins: Value) -> numpy.ndarray:
        """Upper bounds of all margins, with a linear program for each that decides anything."""
        bounds.programs, bounds.end = len(margins.constant), self.end
        return bounds.largest(margins, -math.inf if self.optimum else -self.tolerance)

    def _is_open(self, most: numpy.ndarray) -> bool:
        return self.optimum or not bool(most.max() < -self.tolerance)  # NaN proves nothing

    def _by_program(
        self, program: Program, margins: Value, most: numpy.ndarray, reached: float, broken: bool
    ) -> Answer:
        """One program for each class that may win, likely ones first."""
        by = BY_ATTACK if broken else UNDECIDED
        for row in numpy.argsort(-most):
            margin = margins.rows([row])
            least = reached if self.optimum else -self.tolerance
            if most[row] <= least:
                continue
            if self._left() <= 0:  # to set up a program takes time too, for each class
                break
            solved = program.largest(margin, least, self._left(), EXACT if self.optimum else ANY)
            verified = self._verified(solved.point)
            if solved.point is not None and not verified and not self.optimum and self._left() > 0:
                # The first point was hardly on the wrong side: look for the one farthest on it.
                solved = program.largest(margin, -self.tolerance, self._left(), EXACT)
                verified = self._verified(solved.point)
            most[row] = min(most[row], solved.bound)
            if verified:
                by, broken = BY_PROGRAM if not broken else by, True
                if not self.optimum:
                    return Answer(False, True, self._margin(self.best), BY_PROGRAM)
            if self.optimum and solved.point is not None:
                reached = max(reached, solved.margin)
        largest = float(most.max())
        if broken:
            return Answer(False, True, largest, by)
        robust = largest <= -self.tolerance
        return Answer(robust, False, largest, BY_PROGRAM if robust else UNDECIDED)

    def _left(self) -> float:
        return self.end - time.monotonic()

    def _margins(self) -> Value:
        """Every other logit minus that of the label."""
        logits, label = self.network.logits, int(self.part.labels)
        others = numpy.array([k for k in range(len(logits.constant)) if k != label])
        return logits.rows(others).plus(logits.rows(numpy.full(len(others), label)), -1)

    def _margin(self, images: Tensor) -> float:
        with torch.no_grad():
            logits = self.attacked.model(images)
        return float(LOSSES["margin"](logits, self.part.labels, None))

    def _verified(self, found: numpy.ndarray | None) -> bool:
        """True if the network misclassifies the point [D], or the nearest one of the set, and the threat holds there.

        `best` becomes that point, unless one found before has a larger margin.
        """
        if found is None:
            return False
        images, space, cell = self.part.images, self.search.space, self.search.headline
        point = torch.from_numpy(found).to(images).view_as(images)
        delta = point - images
        for tried in (space.allowed(cell).project(delta), delta):
            none = AttackResult.none(tried)
            search = self.attacked.search(self.part)  # a new one, in which the points before do not count
            search.record(AttackResult(~none.success, tried, none.loss, none.forwards, none.backwards), 1)
            if not bool(search.robust(cell)):
                image = search.image(search.worst)
                if not self._margin(image) <= self._margin(self.best):  # so NaN counts as larger
                    self.best = image
                return True
        return False


def region_of(bound: BoundThreat, cell: Cell) -> Region:
    """The set of one image as a box and half-spaces, in float64, with every point that could count as inside.

    Raises UsageError for a threat that half-spaces do not describe.
    """
    x = bound.examples.double()
    wide = outer(cell.radius)
    lower, upper = bound.bounds((-x).clamp_min(-wide), (1 - x).clamp_max(wide))
    rows, limits = [torch.zeros(0, x[0].numel(), dtype=torch.float64, device=x.device)], list[float]()
    for member, level in _members(bound) if math.isfinite(cell.threshold) else []:
        limit = outer(cell.threshold) * level
        if type(member) is BoundLinf:
            lower, upper = lower.clamp_min(-limit), upper.clamp_max(limit)
        else:
            rows.append(half_spaces(member))
            limits += [limit] * len(rows[-1])
    flat, through = x.flatten().cpu().numpy(), torch.cat(rows).cpu().numpy()
    low, high = (flat + side.flatten().double().cpu().numpy() for side in (lower, upper))
    return Region(low.clip(0, 1), high.clip(0, 1), through, numpy.array(limits) + through @ flat)


def rounded_up(values: Tensor) -> Tensor:
    """The smallest float32 that are not below values in float64."""
    rounded = values.float()
    return torch.where(rounded.double() < values, torch.nextafter(rounded, torch.full_like(rounded, math.inf)), rounded)


def outer(limit: float) -> float:
    """A limit that no value passes which counts as at most the given one: twice the tolerance of `at_most`."""
    relative, absolute = SLACK
    return limit * (1 + 2 * relative) + 2 * absolute


def half_spaces(bound: BoundThreat) -> Tensor:
    """The directions v of one image [M, D] float64, so that its threat is the largest <v, d>, at least 0."""
    if type(bound) is not BoundProjectedDisplacement:  # a class derived from it may measure otherwise
        raise UsageError(
            f"exact answers: expected a threat of half-spaces (PD in any form, Linf or an intersection of these), got "
            f"{type(bound).__name__.removeprefix('Bound')}"
        )
    anchors = (~bound.masked[0]).nonzero().flatten()
    return bound.directions(torch.zeros_like(anchors), anchors).double()


def _members(bound: BoundThreat) -> list[tuple[BoundThreat, float]]:
    return list(bound.members) if isinstance(bound, BoundIntersection) else [(bound, 1.0)]
