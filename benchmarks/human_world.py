"""Data for the measures of study_human to learn from: training images, their neighbours, and rules trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import human_features as features
from benchmarks.human_features import Feature, seeded
from benchmarks.human_validation import network, train_judge

EACH = 50  # anchors of a class


def other_classes(y: int) -> list[int]:
    return [c for c in range(10) if c != y]


@dataclass(frozen=True)
class World:
    """The images x [N,784] and labels y [N] that measures may learn from, and what was learnt."""

    x: Tensor
    y: Tensor
    seed: int

    @cached_property
    def anchors(self) -> tuple[Tensor, Tensor]:
        """EACH random images of each class."""
        order = torch.randperm(len(self.x), generator=seeded(self.seed))
        rows = torch.cat([order[self.y[order] == c][:EACH] for c in range(10)])
        return self.x[rows], self.y[rows]

    def others(self, y: int) -> Tensor:
        return self.anchors[0][self.anchors[1] != y]

    def nearest(self, x: Tensor, label: int, k: int) -> Tensor:
        """The k images [k,784] of a class that are nearest to x in l2 of blurred images."""
        images = self.x[self.y == label]
        apart = (self.blurred[self.y == label] - features.blurred(x)).norm(dim=1)
        return images[apart.topk(k, largest=False).indices]

    @cached_property
    def blurred(self) -> Tensor:
        return features.blurred(self.x)

    @cached_property
    def tangents(self) -> Tensor:
        return features.tangents(self.x)

    @cached_property
    def plain(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return adversarial(network(), self.x, self.y, 0, 0, 15, self.seed)

    @cached_property
    def robust(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return adversarial(network(12), self.x, self.y, 0.3, 5, 20, self.seed)

    @cached_property
    def varied(self) -> nn.Module:
        """A network that saw the variations of the judges of the validation task, on other images."""
        return train_judge(self.x, self.y, self.seed + 100, epochs=40)


class KernelRule:
    """Least squares in the space of a Gaussian kernel on a feature, one answer a class."""

    def __init__(self, feature: Feature, x: Tensor, y: Tensor, width: float = 0.5, ridge: float = 0.1) -> None:
        self.feature, self.points, self.ridge = feature, feature(x), ridge
        sample = self.points[:: max(1, len(x) // 500)]
        self.scale = width * torch.cdist(sample, sample).square().median()
        kernel = self.kernel(self.points)
        kernel.diagonal().add_(ridge)
        self.weights = torch.linalg.solve(kernel, 2 * F.one_hot(y, 10).float() - 1)

    def kernel(self, points: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(points, self.points).square() / self.scale)

    def __call__(self, x: Tensor) -> Tensor:
        return self.kernel(self.feature(x)) @ self.weights


class InformedRule(KernelRule):
    """The same rule after it has learnt one more image, x with its label, nearly without error.

    Two conditions remain of the system: with c the covariance that is left once the images are known, an answer at z
    changes by c(z, x) / (c(x, x) + `own`) times what it missed at x.
    """

    def __init__(self, feature: Feature, x: Tensor, y: Tensor, width: float = 1.0, own: float = 0.01) -> None:
        super().__init__(feature, x, y, width)
        kernel = self.kernel(self.points)
        kernel.diagonal().add_(self.ridge)
        self.own, self.factor = own, torch.linalg.cholesky(kernel.double()).float()

    def informed(self, x: Tensor, y: int, z: Tensor) -> Tensor:
        """[1+m,10]: answers at x [784] and at z [m,784]."""
        points = self.feature(torch.cat([x.unsqueeze(0), z]))
        kernel = self.kernel(points)
        known = torch.linalg.solve_triangular(self.factor, kernel.T, upper=False)
        left = torch.exp(-(points - points[:1]).square().sum(1) / self.scale) - known.T @ known[:, 0]
        answers, wanted = kernel @ self.weights, -torch.ones(10)
        wanted[y] = 1
        return answers + (left / (left[0] + self.own)).unsqueeze(1) * (wanted - answers[0])


def adversarial(net: nn.Module, x: Tensor, y: Tensor, radius: float, steps: int, epochs: int, seed: int) -> nn.Module:
    """The network, trained on adversaries in an l-inf ball that grows over the first third; radius 0: as usual."""
    generator = seeded(seed)
    total = epochs * (len(x) // 64)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=total)
    for step in range(total):
        rows = torch.randint(len(x), (64,), generator=generator)
        images, labels, size = x[rows], y[rows], radius * min(1.0, 3 * step / total)
        delta = size * (2 * torch.rand(images.shape, generator=generator) - 1)
        for _ in range(steps if radius else 0):
            delta.requires_grad_(True)
            (slope,) = torch.autograd.grad(F.cross_entropy(net((images + delta).clamp(0, 1)), labels), delta)
            delta = (delta.detach() + 2.5 * size / steps * slope.sign()).clamp(-size, size)
        optimizer.zero_grad()
        F.cross_entropy(net((images + delta.detach()).clamp(0, 1)), labels).backward()
        optimizer.step()
        schedule.step()
    return net.eval()
