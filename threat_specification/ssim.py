"""Structural dissimilarity: 1 - SSIM (Wang, Bovik, Sheikh, Simoncelli 2004)."""

from __future__ import annotations

import torch
from torch import Tensor

from foundations.arithmetic import full_precision
from threat_specification.base import Measure, check_images

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2  # for pixels in [0, 1]


class SSIMDistance(Measure):
    """1 - SSIM, from 0 to 2: the mean over channels and over all positions of an 11 x 11 Gaussian window.

    The window lies entirely inside the image; for smaller images it is the largest odd window that fits.
    """

    name = "SSIM"

    def evaluate(self, examples: Tensor, labels: Tensor, perturbed_examples: Tensor) -> Tensor:
        check_images(examples, labels, perturbed_examples)
        with full_precision(examples.device.type):  # variances are differences of means of squares
            return self._distance(examples, perturbed_examples)

    @staticmethod
    def _distance(examples: Tensor, perturbed_examples: Tensor) -> Tensor:
        x, y = examples.float(), perturbed_examples.float()
        side = min(WINDOW, *x.shape[2:])
        down, across = (_windows(length, side - 1 + side % 2, x.device) for length in x.shape[2:])

        def mean(values: Tensor) -> Tensor:
            return down @ values @ across.T

        of_x, of_y = mean(x), mean(y)
        covariance = mean(x * y) - of_x * of_y
        # Rounding can make a variance negative.
        variances = (mean(x * x) - of_x.square()).clamp_min(0) + (mean(y * y) - of_y.square()).clamp_min(0)
        similarity = (2 * of_x * of_y + C1) * (2 * covariance + C2)
        similarity = similarity / ((of_x.square() + of_y.square() + C1) * (variances + C2))
        return (1 - similarity.flatten(1).mean(1)).clamp_min(0)


def _windows(length: int, side: int, device: torch.device) -> Tensor:
    """The window at each of its places in a line, [length - side + 1, length]; quicker than convolutions."""
    offsets = torch.arange(length, device=device) - torch.arange(length - side + 1, device=device).view(-1, 1)
    weights = torch.exp(-0.5 * ((offsets - (side - 1) / 2) / SIGMA) ** 2) * ((offsets >= 0) & (offsets < side))
    return weights / weights.sum(1, keepdim=True)
