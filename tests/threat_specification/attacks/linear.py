"""Linear classifiers, for which the best attack is known: independent of our attacks, in float64."""

from __future__ import annotations

import numpy
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from threat_specification import AnchorSet

SHAPE = (1, 6, 6)


class Linear(nn.Module):
    """Logits W x + b."""

    def __init__(self, num_classes: int, seed: int) -> None:
        super().__init__()
        size = SHAPE[0] * SHAPE[1] * SHAPE[2]
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(num_classes, size, generator=generator) / size**0.5)
        self.bias = nn.Parameter(0.1 * torch.randn(num_classes, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


def problem(num_classes: int, count: int = 24, seed: int = 0) -> tuple[Linear, AnchorSet, Tensor, Tensor]:
    """A model, anchors, examples and the labels that the model gives them."""
    generator = torch.Generator().manual_seed(seed)
    model = Linear(num_classes, seed)
    anchors = AnchorSet(
        torch.rand(6 * num_classes, *SHAPE, generator=generator), torch.arange(6 * num_classes) % num_classes
    )
    images = 0.1 + 0.8 * torch.rand(count, *SHAPE, generator=generator)
    return model, anchors, images, model(images).argmax(1)


def directions(anchors: AnchorSet, image: Tensor, label: int) -> numpy.ndarray:
    """v_j of all anchors of other classes, [M, D], by loops."""
    x, rows = image.flatten().double().numpy(), []
    for anchor, its_label in zip(anchors.images.flatten(1).double().numpy(), anchors.labels.tolist(), strict=True):
        if its_label != label:
            step = anchor - x
            rows.append(2 * step / (step**2).sum())
    return numpy.array(rows)


def best_margin(model: Linear, anchors: AnchorSet, image: Tensor, label: int, threshold: float, radius: float) -> float:
    """The largest margin (other logit minus that of the label) in {PD <= threshold}, radius and pixel box."""
    rows, x = directions(anchors, image, label), image.flatten().double().numpy()
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    bounds = numpy.stack([numpy.maximum(-x, -radius), numpy.minimum(1 - x, radius)], 1)
    best = -numpy.inf
    for target in range(len(weight)):
        if target != label:
            gain = weight[target] - weight[label]
            solved = linprog(-gain, rows, numpy.full(len(rows), threshold), bounds=bounds)
            best = max(best, gain @ x + bias[target] - bias[label] - solved.fun)
    return best


def smallest_gauge(
    model: Linear, anchors: AnchorSet, image: Tensor, label: int, threshold: float, radius: float
) -> float:
    """The smallest t with a wrong answer in {PD <= t threshold, l-inf <= t radius} and the box; else infinity.

    One linear program in (d, t) for each target.
    """
    rows, x = directions(anchors, image, label), image.flatten().double().numpy()
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    size, best = len(x), numpy.inf
    identity, ones = numpy.eye(size), numpy.ones((size, 1))
    for target in range(len(weight)):
        if target != label:
            gain = weight[target] - weight[label]
            inequalities = numpy.vstack(
                [
                    numpy.hstack([rows, numpy.full((len(rows), 1), -threshold)]),
                    numpy.hstack([identity, -radius * ones]),
                    numpy.hstack([-identity, -radius * ones]),
                    numpy.append(-gain, 0.0),
                ]
            )
            limits = numpy.append(numpy.zeros(len(rows) + 2 * size), gain @ x + bias[target] - bias[label])
            bounds = [*zip(-x, 1 - x, strict=True), (0, None)]
            solved = linprog(numpy.append(numpy.zeros(size), 1.0), inequalities, limits, bounds=bounds)
            best = min(best, solved.fun if solved.success else numpy.inf)
    return best
