"""A small network with ReLUs and mixtures of safe changes: a mixed-integer program knows the worst point of the set."""

from __future__ import annotations

import numpy
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from tests.threat_specification.attacks.linear import directions
from tests.threat_specification.attacks.test_exact import CLASSES, HIDDEN, problem
from tests.threat_specification.safe_moves.problems import changed
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.attacks.registry import attacks_named
from threat_specification.attacks.search import Cell, Search
from threat_specification.safe_moves.mixtures import SafeMoves
from threat_specification.safe_moves.space import Mixtures

HEADLINE = Cell(0.15, 0.08)
MOVES = 5
EXAMPLES = 9
MEMBERS = ("single_moves", "momentum_ce", "momentum_dlr", "momentum_targeted")


def largest_margin(
    net: nn.Sequential, anchors: AnchorSet, image: torch.Tensor, moved: torch.Tensor, label: int
) -> float:
    """max over (n, c) in the set and over targets of logit[target] - logit[label].

    Variables: n (64), c (MOVES), the ReLUs' outputs h (H), whether each is on, z (H).
    """
    (w1, b1), (w2, b2) = ((layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
                          for layer in (net[1], net[3]))  # fmt: skip
    x = image.flatten().double().numpy()
    shifts = (moved.flatten(1).double().numpy() - x).T  # [64, MOVES]
    change = numpy.hstack([numpy.eye(64), shifts])  # d = change (n, c)
    at_x = w1 @ x + b1
    # The pixel box gives bounds of the pre-activations.
    lower = numpy.minimum(b1 + numpy.minimum(w1, 0).sum(1), 0)
    upper = numpy.maximum(b1 + numpy.maximum(w1, 0).sum(1), 0)
    rows = directions(anchors, image, label)
    eye, none = numpy.eye(HIDDEN), numpy.zeros((HIDDEN, HIDDEN))
    wide = lambda matrix: numpy.hstack([matrix, numpy.zeros((len(matrix), 2 * HIDDEN))])  # noqa: E731
    constraints = [
        LinearConstraint(wide(rows @ change), -numpy.inf, HEADLINE.threshold),
        LinearConstraint(wide(change), -x, 1 - x),
        LinearConstraint(wide(numpy.concatenate([numpy.zeros(64), numpy.ones(MOVES)])[None]), -numpy.inf, 1),
        LinearConstraint(numpy.hstack([-w1 @ change, eye, none]), at_x, numpy.inf),
        LinearConstraint(numpy.hstack([-w1 @ change, eye, -numpy.diag(lower)]), -numpy.inf, at_x - lower),
        LinearConstraint(numpy.hstack([numpy.zeros((HIDDEN, 64 + MOVES)), eye, -numpy.diag(upper)]), -numpy.inf, 0),
    ]
    zeros, ones = numpy.zeros(HIDDEN), numpy.ones(HIDDEN)
    noise, some = numpy.full(64, HEADLINE.radius), numpy.ones(MOVES)
    bounds = Bounds(numpy.concatenate([-noise, 0 * some, zeros, zeros]), numpy.concatenate([noise, some, upper, ones]))
    whole = numpy.concatenate([numpy.zeros(64 + MOVES + HIDDEN), ones])
    best = -numpy.inf
    for target in range(CLASSES):
        if target != label:
            gain = numpy.concatenate([numpy.zeros(64 + MOVES), w2[target] - w2[label], zeros])
            solved = milp(-gain, constraints=constraints, bounds=bounds, integrality=whole)
            best = max(best, -solved.fun + b2[target] - b2[label])
    return best


def test_the_attacks_break_exactly_what_can_be_broken() -> None:
    """But for margins within 1 % of 0; and where nothing can be broken, their margin is near the largest one."""
    net, anchors, images, labels = problem()
    images, labels = images[:EXAMPLES], labels[:EXAMPLES]
    bound = ProjectedDisplacement(anchors=anchors).bind(images, labels)
    moved = changed(images)
    space = Mixtures(SafeMoves(bound, moved), HEADLINE.radius)
    found = Search(net, bound, labels, torch.arange(EXAMPLES), HEADLINE, 40, seed=0, space=space)
    found.attack(HEADLINE, attacks_named(MEMBERS, CLASSES))
    broken = ~found.robust(HEADLINE)
    logits = net(images).detach()
    own = logits.gather(1, labels.view(-1, 1)).squeeze(1)
    clean = (logits.scatter(1, labels.view(-1, 1), -torch.inf).amax(1) - own).tolist()
    every = zip(images, moved, labels, strict=True)
    truth = [largest_margin(net, anchors, x, changes, int(y)) for x, changes, y in every]
    for row, (best, margin) in enumerate(zip(truth, clean, strict=True)):
        if abs(best) > 0.01 * (best - margin):
            assert bool(broken[row]) == (best > 0), (row, best)
        if not broken[row]:
            assert best - 0.15 * (best - margin) <= float(found.loss[row]) <= best + 1e-4
    assert 3 <= int(broken.sum()) <= EXAMPLES - 3
