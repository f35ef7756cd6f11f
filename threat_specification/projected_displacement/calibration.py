"""Scaling of class weights to the plain threat, and a check for moves that the weights make too harmless."""

from __future__ import annotations

import torch
from torch import Tensor

from foundations.errors import UsageError
from foundations.pixels import as_floats
from threat_specification.projected_displacement.class_weights import check_class_weights, check_labels_covered
from threat_specification.projected_displacement.directions import BETA
from threat_specification.projected_displacement.threat import ProjectedDisplacement

PAIRS = 2000
BATCH = 128


def calibrate(class_weights: Tensor, threat: ProjectedDisplacement, images: Tensor, labels: Tensor) -> Tensor:
    """The weights times one factor, so that PD-W and PD have equal medians over pairs of images of different classes.

    threat   the plain PD over the anchors that PD-W will use
    images   [n,C,H,W] training images, uint8 or floats in [0, 1], labels [n]; the perturbation is another image - x.
             Pairs are the same at every call: in a fixed random order, image i with image i + s, for s = 1, 2, ...
             until there are PAIRS pairs
    """
    weights = check_class_weights(class_weights).to(labels.device)
    check_labels_covered(weights, labels, "images")
    first, second = pairs_of_classes(labels)
    if not len(first):
        raise UsageError("calibration of class weights: expected images of at least two classes, got one class")
    plain, weighted = [], []
    for part in torch.arange(len(first)).split(BATCH):
        x, other, y = as_floats(images[first[part]]), as_floats(images[second[part]]), labels[first[part]]
        bound = threat.bind(x, y)
        along = bound.displacements((other - x).flatten(1)).clamp_min(0)
        plain.append(along.amax(1))
        weighted.append((along / weights[y][:, threat.labels]).masked_fill(bound.masked, 0).amax(1))
    expected, got = torch.cat(plain).median(), torch.cat(weighted).median()
    if not float(got) > 0:
        raise UsageError("calibration of class weights: most pairs of images have threat 0; use more anchors or images")
    return weights * (got / expected)


def pairs_of_classes(labels: Tensor, limit: int = PAIRS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs of numbers of images of different classes, at most `limit`, spread over all images; none of one class."""
    count = len(labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(labels.device)
    firsts, seconds, found = [order[:0]], [order[:0]], 0
    for step in range(1, count if len(labels.unique()) > 1 else 1):
        other = order.roll(-step)
        differ = labels[order] != labels[other]
        firsts.append(order[differ])
        seconds.append(other[differ])
        found += int(differ.sum())
        if found >= limit:
            break
    return torch.cat(firsts)[:limit], torch.cat(seconds)[:limit]


def warn_below_one(threat: ProjectedDisplacement, limit: int = 500) -> tuple[int, int]:
    """Number of pairs of anchors (x, d = another class's anchor - x) with threat below 1, and of those looked at.

    Plain PD is at least 2 for such pairs, so a count above 0 means that the weights make images of another class count
    as harmless; the caller warns. Pairs are those of `limit` anchors evenly spread over the set; their threat is over
    all anchors. Masks are ignored. The plain threat is not looked at: (0, 0).
    """
    if not threat.weighted:
        return 0, 0
    threat.prepare()
    assert threat.class_weights is not None
    matrix, labels = threat.matrix, threat.labels
    chosen = torch.linspace(0, len(labels) - 1, min(limit, len(labels)), device=labels.device).round().long()
    rows = matrix.rows(chosen) - matrix.centre
    gram = matrix.products(rows).double()  # [M, N]
    squared = gram[:, chosen].diagonal()
    below = looked_at = 0
    for i, anchor in enumerate(chosen):
        along = gram - gram[i] - (gram[i, chosen] - squared[i]).view(-1, 1)  # <a_j - x, a_k - x>, [M, N]
        distance = squared[i] + matrix.squared_norms - 2 * gram[i]
        counts = (labels != labels[anchor]) & (distance > 0)
        inverse = 1 / (BETA * distance * threat.class_weights[labels[anchor], labels])
        value = (along * inverse).masked_fill_(~counts, 0).amax(1)
        others = labels[chosen] != labels[anchor]
        below, looked_at = below + int(((value < 1) & others).sum()), looked_at + int(others.sum())
    return below, looked_at
