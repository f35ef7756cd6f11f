"""Projections to certify: images, anchors, perturbations and bounds, and what a right answer must satisfy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import kkt
import numpy as np
import tangent_oracle
import torch
from scipy.optimize import linprog
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

from threat_specification import AnchorSet, ProjectedDisplacement

BATCH = 8
THRESHOLDS = [0.0, 0.001, 0.05, 0.3, 1.0]


def photographs(count: int, channels: int, side: int) -> tuple[Tensor, Tensor]:
    """Smooth images of ten classes; most pixels inside (0, 1)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    coarse = 0.7 * torch.randn(10, channels, 6, 6, generator=generator)[labels]
    coarse = coarse + torch.randn(count, channels, 6, 6, generator=generator)
    images = 0.5 + 0.2 * interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    images = images + 0.03 * torch.randn(images.shape, generator=generator)
    return (255 * images.clamp(0, 1)).round() / 255, labels


@cache
def data(name: str) -> tuple[Tensor, Tensor]:
    if name == "digits":
        images, labels = load_digits(return_X_y=True)
        return torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    if name == "28x28":
        images, labels = photographs(200, 1, 28)
        return (3 * images - 1).clamp(0, 1), labels  # half the pixels black or white
    return photographs(200, 3, 32)


def directions_of(tangents: bool) -> Callable[..., np.ndarray]:
    """v_j of an image [C, H, W], in the tangent form or not."""
    if tangents:
        return tangent_oracle.directions
    return lambda image, *known: kkt.directions(image.ravel(), *known)


class Problem:
    """A threat bound to a few images, with what certificates need."""

    def __init__(self, name: str, num_anchors: int = 120, batch: int = BATCH, tangents: bool = False) -> None:
        images, labels = data(name)
        self.anchors, self.anchor_labels = images[:num_anchors].contiguous(), labels[:num_anchors]
        self.x = images[num_anchors : num_anchors + batch].contiguous()
        self.y = labels[num_anchors : num_anchors + batch]
        anchors = AnchorSet(self.anchors, self.anchor_labels)
        self.tangents, self.directions = tangents, directions_of(tangents)
        self.threat = ProjectedDisplacement(anchors=anchors, tangents=tangents).prepare()
        self.bound = self.threat.bind(self.x, self.y)

    def rows(self, i: int) -> np.ndarray:
        flat = self.anchors.flatten(1).numpy()
        return self.directions(self.x[i].numpy(), int(self.y[i]), flat, self.anchor_labels.numpy())

    def longest(self, i: int) -> float:
        return float(np.linalg.norm(self.rows(i), axis=1).max())

    def excess(self, p: Tensor, threshold: float) -> float:
        """Largest PD beyond the threshold, float64."""
        return max(float((self.rows(i) @ p[i].flatten().double().numpy()).max()) - threshold for i in range(len(p)))

    def certificates(self, d: Tensor, p: Tensor, threshold: float, lower: Tensor, upper: Tensor) -> list:
        return [
            kkt.certify(self.rows(i), threshold, *(each[i].flatten().numpy() for each in (d, p, lower, upper)))
            for i in range(len(p))
        ]


def perturbations(problem: Problem, kind: str, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, anchors = problem.x, problem.anchors
    if kind == "noise":
        return 0.3 * torch.randn(x.shape, generator=generator)
    if kind == "signs":
        return 0.1 * torch.randn(x.shape, generator=generator).sign()
    share = {"one anchor": 1, "twenty anchors": 20}[kind]
    picks = torch.randint(0, len(anchors), (len(x), share), generator=generator)
    return 1.5 * (anchors[picks].mean(1) - x)


def frozen(x: Tensor) -> tuple[Tensor, Tensor]:
    free = torch.zeros_like(x)
    free[..., 2:-2, 2:-2] = 1
    return -x * free, (1 - x) * free


BOUNDS = {
    "none": lambda x: (torch.full_like(x, -1e6), torch.full_like(x, 1e6)),
    "box": lambda x: (-x, 1 - x),
    "radius": lambda x: ((-x).clamp_min(-0.1), (1 - x).clamp_max(0.1)),
    "frozen": frozen,
}


def assert_certified(problem: Problem, d: Tensor, p: Tensor, threshold: float, lower: Tensor, upper: Tensor) -> int:
    """Feasible and nearest; the largest number of anchors that bind."""
    assert bool(((p >= lower) & (p <= upper)).all())
    most = 0
    for i, certificate in enumerate(problem.certificates(d, p, threshold, lower, upper)):
        # In the tangent form, rows are rounded after a subtraction, where an image is even all alike: by that, a point
        # may be beyond by 2^-24 of its length.
        beyond = 2**-24 * float(p[i].norm()) * problem.longest(i) if problem.tangents else 0.0
        assert certificate.excess <= 1e-6 * threshold + beyond, (i, certificate, beyond)
        # A projection ends as float32: that moves p by up to 2^-24 |p|, and the margin kept for it by 1e-7.
        distance = float((d[i].double() - p[i]).norm())
        rounding = (3e-7 + 1.2e-7 * float(p[i].norm())) / max(distance, 1e-12)
        nearly = 1e-5 + 2 * rounding
        assert certificate.residual <= nearly or distance < 1e-6, (i, certificate, rounding)
        assert certificate.gap <= 1e-6 + 2 * rounding or distance < 1e-6, (i, certificate, rounding)
        most = max(most, certificate.active)
    return most


def mislead(problem: Problem) -> None:
    """Put wrong anchors with large multipliers into the warm start of the bound threat."""
    generator = torch.Generator().manual_seed(0)
    warm, count = problem.bound.warm, len(problem.x)
    warm.anchors = torch.stack([torch.randperm(len(problem.anchors), generator=generator)[:9] for _ in range(count)])
    warm.multipliers = 1e3 * torch.rand(count, 9, generator=generator, dtype=torch.float64)


def certify_segmented(name: str, weighted: bool, norm: str, tangents: bool = False) -> None:
    """Project onto the segmented form, weighted or with tangents or not, and check the KKT conditions in float64."""
    problem = Problem(name, tangents=tangents)
    generator = torch.Generator().manual_seed(2)
    weights = 0.1 + 0.9 * torch.rand(10, 10, generator=generator) if weighted else None
    masks = torch.rand(BATCH, 1, *problem.x.shape[2:], generator=generator) < 0.6
    anchors = AnchorSet(problem.anchors, problem.anchor_labels)
    threat = ProjectedDisplacement(
        None,
        weighted,
        True,
        anchors,
        class_weights=weights,
        background="radius",
        segmented_norm=norm,
        tangents=tangents,
    )
    bound = threat.prepare().bind(problem.x, problem.y, masks=masks)
    flat, matrix = problem.anchors.flatten(1).numpy(), None if weights is None else weights.numpy()
    rows = [
        directions_of(tangents)(
            problem.x[i].numpy(), int(problem.y[i]), flat, problem.anchor_labels.numpy(), matrix, mask, norm
        )
        for i, mask in enumerate(masks.expand_as(problem.x).flatten(1).double().numpy())
    ]
    problem.rows = rows.__getitem__  # type: ignore[method-assign]
    radius = bound.inscribed_radius()
    expected = torch.tensor([1 / np.linalg.norm(each, axis=1).max() for each in rows])
    torch.testing.assert_close(radius.double(), expected, rtol=1e-5, atol=0)
    lower, upper = BOUNDS["radius"](problem.x)
    for kind in ("noise", "twenty anchors"):
        d = perturbations(problem, kind)
        for threshold in (0.05, 0.3):
            p = bound.nearest(d, threshold, lower, upper)
            assert_certified(problem, d, p, threshold, lower, upper)
    assert bound.fallbacks == 0


def assert_far_targets_are_followed(bounds: str, threshold: float) -> None:
    """Points of far targets go as far as any of the set does, up to a hundredth of its box's diagonal.

    Independent: the farthest point of the polytope along each target, by a linear program.
    """
    problem = Problem("digits", batch=4)
    d = perturbations(problem, "noise")
    lower, upper = BOUNDS[bounds](problem.x)
    diagonal = float((upper - lower).flatten(1).norm(dim=1).max())
    for size in (1e3, 1e5, 1e8, 1e30):
        p = problem.bound.nearest(size * d, threshold, lower, upper)
        assert problem.excess(p, threshold) <= 1e-5 * threshold + 1e-7
        for i in range(len(p)):
            way = (d[i] / d[i].norm()).flatten().double().numpy()
            box = np.stack([lower[i].flatten().double().numpy(), upper[i].flatten().double().numpy()], 1)
            rows = problem.rows(i)
            most = -linprog(-way, A_ub=rows, b_ub=np.full(len(rows), threshold), bounds=box).fun
            assert way @ p[i].flatten().double().numpy() >= most - diagonal / 100
            assert most > 0.1 * diagonal  # so that 0 would not do
    assert problem.bound.fallbacks == 0
