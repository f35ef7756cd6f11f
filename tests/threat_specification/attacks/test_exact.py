"""A small network with ReLUs, for which a mixed-integer program knows the truth: independent of our attacks."""

from __future__ import annotations

import numpy
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from sklearn.datasets import load_digits
from torch import nn

from tests.threat_specification.attacks.linear import directions
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.attacks.registry import attacks_named
from threat_specification.attacks.search import Cell, Search

CLASSES, HIDDEN, EXAMPLES = 4, 10, 20
HEADLINE = Cell(0.1, 0.15)


def problem() -> tuple[nn.Sequential, AnchorSet, torch.Tensor, torch.Tensor]:
    """A net trained on four digits, anchors, and test images."""
    data = load_digits(n_class=CLASSES)
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(data.target).long()
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[:500]), labels[:500]).backward()
        optimizer.step()
    return net, AnchorSet(images[500:540], labels[500:540]), images[600 : 600 + EXAMPLES], labels[600 : 600 + EXAMPLES]


def largest_margin(net: nn.Sequential, anchors: AnchorSet, image: torch.Tensor, label: int) -> float:
    """max over d in the headline cell and targets of logit[target] - logit[label].

    Variables: d (64), the ReLUs' outputs h (H), whether each is on, z (H). With pre-activations in [l, u] over the box,
    h >= a, h <= a - l (1 - z), 0 <= h <= u z.
    """
    (w1, b1), (w2, b2) = ((layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
                          for layer in (net[1], net[3]))  # fmt: skip
    x = image.flatten().double().numpy()
    low, high = numpy.maximum(-x, -HEADLINE.radius), numpy.minimum(1 - x, HEADLINE.radius)
    at_x = w1 @ x + b1
    lower = at_x + numpy.minimum(w1 * low, w1 * high).sum(1)
    upper = numpy.maximum(at_x + numpy.maximum(w1 * low, w1 * high).sum(1), 0)
    lower = numpy.minimum(lower, 0)
    rows = directions(anchors, image, label)
    eye, none = numpy.eye(HIDDEN), numpy.zeros((HIDDEN, HIDDEN))
    constraints = [
        LinearConstraint(numpy.hstack([rows, numpy.zeros((len(rows), 2 * HIDDEN))]), -numpy.inf, HEADLINE.threshold),
        LinearConstraint(numpy.hstack([-w1, eye, none]), at_x, numpy.inf),
        LinearConstraint(numpy.hstack([-w1, eye, -numpy.diag(lower)]), -numpy.inf, at_x - lower),
        LinearConstraint(numpy.hstack([numpy.zeros((HIDDEN, 64)), eye, -numpy.diag(upper)]), -numpy.inf, 0),
    ]
    zeros, ones = numpy.zeros(HIDDEN), numpy.ones(HIDDEN)
    bounds = Bounds(numpy.concatenate([low, zeros, zeros]), numpy.concatenate([high, upper, ones]))
    whole = numpy.concatenate([numpy.zeros(64 + HIDDEN), ones])
    best = -numpy.inf
    for target in range(CLASSES):
        if target != label:
            gain = numpy.concatenate([numpy.zeros(64), w2[target] - w2[label], zeros])
            solved = milp(-gain, constraints=constraints, bounds=bounds, integrality=whole)
            best = max(best, -solved.fun + b2[target] - b2[label])
    return best


def test_the_ensemble_breaks_exactly_what_can_be_broken() -> None:
    """But for margins within 1 % of 0. Half of the examples can be broken, half cannot."""
    net, anchors, images, labels = problem()
    bound = ProjectedDisplacement(anchors=anchors).bind(images, labels)
    found = Search(net, bound, labels, torch.arange(EXAMPLES), HEADLINE, 40, seed=0)
    found.attack(HEADLINE, attacks_named([], CLASSES))
    broken = ~found.robust(HEADLINE)
    logits = net(images).detach()
    own = logits.gather(1, labels.view(-1, 1)).squeeze(1)
    clean = (logits.scatter(1, labels.view(-1, 1), -torch.inf).amax(1) - own).tolist()
    truth = [largest_margin(net, anchors, x, int(y)) for x, y in zip(images, labels, strict=True)]
    for row, (best, margin) in enumerate(zip(truth, clean, strict=True)):
        if abs(best) > 0.01 * (best - margin):
            assert bool(broken[row]) == (best > 0), (row, best)
    assert 4 <= int(broken.sum()) <= EXAMPLES - 4
