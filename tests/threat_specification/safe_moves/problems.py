"""Digits, anchors and safe changes, and what the set of their mixtures is in float64, by loops."""

from __future__ import annotations

import numpy
import torch
from scipy.optimize import linprog
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tests.threat_specification.attacks.linear import directions
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.safe_moves.mixtures import SafeMoves

COUNT = 12


def changed(images: Tensor) -> Tensor:
    """Darker, of less contrast, shifted by a pixel to two sides, and blurred: [B,5,1,8,8]."""
    blurred = nn.functional.avg_pool2d(images, 3, 1, 1)
    shifted = [images.roll(1, dim) for dim in (2, 3)]
    return torch.stack([0.5 * images, 0.6 * images + 0.2, *shifted, blurred], 1).clamp(0, 1)


class Problem:
    """Images x with labels y, safe changes, anchors, and a threat bound to the images."""

    def __init__(self, inner: float = 0.0) -> None:
        """inner: pixels are moved into [inner, 1 - inner], so that the pixel box is away."""
        images, labels = load_digits(return_X_y=True)
        images = inner + (1 - 2 * inner) * torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
        labels = torch.tensor(labels)
        self.anchors = AnchorSet(images[:60], labels[:60])
        self.x, self.y = images[100 : 100 + COUNT], labels[100 : 100 + COUNT]
        self.changed = changed(self.x)
        self.bound = ProjectedDisplacement(anchors=self.anchors).bind(self.x, self.y)
        self.moves = SafeMoves(self.bound, self.changed)

    def rows(self, i: int) -> numpy.ndarray:
        """v_j of image i, [M, D] float64."""
        return directions(self.anchors, self.x[i], int(self.y[i]))

    def shifts(self, i: int) -> numpy.ndarray:
        """s_k of image i, [K, D] float64."""
        return (self.changed[i].double() - self.x[i].double()).flatten(1).numpy()

    def assert_inside(self, noise: Tensor, weights: Tensor, threshold: float, radius: float) -> None:
        """All bounds of the set, up to the rounding of float32."""
        for i in range(COUNT):
            n, c = noise[i].flatten().double().numpy(), weights[i].double().numpy()
            change, x = n + c @ self.shifts(i), self.x[i].flatten().double().numpy()
            assert abs(n).max() <= radius + 1e-7
            assert c.min() >= 0 and c.sum() <= 1 + 1e-6
            assert (x + change).min() >= -1e-6 and (x + change).max() <= 1 + 1e-6
            assert (self.rows(i) @ change).max() <= threshold * (1 + 1e-5) + 1e-7

    def largest(self, gain: Tensor, i: int, threshold: float, radius: float) -> float:
        """max of <gain, n + sum_k c_k s_k> over the set, by a linear program."""
        x, shifts, rows = self.x[i].flatten().double().numpy(), self.shifts(i), self.rows(i)
        change = numpy.hstack([numpy.eye(x.size), shifts.T])
        total = numpy.concatenate([numpy.zeros(x.size), numpy.ones(len(shifts))])
        left = numpy.vstack([rows @ change, change, -change, total])
        right = numpy.concatenate([numpy.full(len(rows), threshold), 1 - x, x, [1]])
        bounds = [(-radius, radius)] * x.size + [(0, 1)] * len(shifts)
        return -linprog(-gain.flatten().double().numpy() @ change, left, right, bounds=bounds).fun
