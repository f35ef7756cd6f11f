"""AugMix: an image mixed with chains of random everyday changes of itself (Hendrycks et al. 2020, arXiv 1912.02781).

The changes, their strengths and their chances are those of `torchvision.transforms.v2.AugMix` with its defaults (three
chains of one to three changes, severity 3, alpha 1). torchvision draws from the global generator and changes one image
at a time; here every draw depends only on seed, data set index and step, and images that get the same change at the
same strength go through it together. The sum of the divergences of the paper (its equation 2) is not part of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from foundations.errors import UsageError
from foundations.pixels import as_floats
from threat_specification.attacks.random_numbers import uniform

CHAINS = DEPTH = 3
LEVELS = 3  # the first three of ten strengths, which begin with none
STRENGTHS = 10

Change = Callable[[Tensor, int, bool], Tensor]  # (images [n,C,H,W] uint8, level, negative) -> the same shape


def _sheared(images: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
    """Sheared around the first pixel; x, y: tangents of the angles."""
    angles = [math.degrees(math.atan(each)) for each in (x, y)]
    return functional.affine(images, 0.0, [0, 0], 1.0, angles, InterpolationMode.BILINEAR, center=[0, 0])


def _moved(images: Tensor, right: float = 0.0, down: float = 0.0) -> Tensor:
    """Moved by whole pixels, rounded towards 0."""
    return functional.affine(images, 0.0, [int(right), int(down)], 1.0, [0.0, 0.0], InterpolationMode.BILINEAR)


def _amount(largest: float, level: int, negative: bool) -> float:
    return (-1 if negative else 1) * largest * level / (STRENGTHS - 1)


CHANGES: dict[str, Change] = {
    "shear_x": lambda x, level, negative: _sheared(x, x=_amount(0.3, level, negative)),
    "shear_y": lambda x, level, negative: _sheared(x, y=_amount(0.3, level, negative)),
    "translate_x": lambda x, level, negative: _moved(x, right=_amount(x.shape[3] / 3, level, negative)),
    "translate_y": lambda x, level, negative: _moved(x, down=_amount(x.shape[2] / 3, level, negative)),
    "rotate": lambda x, level, negative: functional.rotate(x, _amount(30, level, negative), InterpolationMode.BILINEAR),
    "posterize": lambda x, level, negative: functional.posterize(x, round(4 - 4 * level / (STRENGTHS - 1))),
    "solarize": lambda x, level, negative: functional.solarize(x, 255 * (1 - level / (STRENGTHS - 1))),
    "autocontrast": lambda x, level, negative: functional.autocontrast(x),
    "equalize": lambda x, level, negative: functional.equalize(x),
    "brightness": lambda x, level, negative: functional.adjust_brightness(x, 1 + _amount(0.9, level, negative)),
    "color": lambda x, level, negative: functional.adjust_saturation(x, 1 + _amount(0.9, level, negative)),
    "contrast": lambda x, level, negative: functional.adjust_contrast(x, 1 + _amount(0.9, level, negative)),
    "sharpness": lambda x, level, negative: functional.adjust_sharpness(x, 1 + _amount(0.9, level, negative)),
}
WITHOUT_LEVEL = ("autocontrast", "equalize")
WITHOUT_SIGN = (*WITHOUT_LEVEL, "posterize", "solarize")


@dataclass(frozen=True)
class AugMix:
    """(images [B,C,H,W] in [0, 1] with 1 or 3 channels, index [B], draw) -> mixed images, of the same shape."""

    seed: int

    def __call__(self, images: Tensor, index: Tensor, draw: int) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise UsageError(f"--augmix: expected images with 1 or 3 channels, got {images.shape[1]}")
        numbers = uniform(self.seed, index, draw, (1 + CHAINS * (2 + 3 * DEPTH),))
        share, weights, depths, kinds = numbers.split([1, CHAINS, CHAINS, 3 * CHAINS * DEPTH], 1)
        # Beta(1, 1) is uniform, and Dirichlet(1, ..., 1) the direction of independent exponentials.
        weights = -torch.log1p(-weights).clamp_max(-1e-12)
        weights = share * weights / weights.sum(1, keepdim=True)
        ended = _chains(images, (depths * DEPTH).long(), _kinds(kinds.unflatten(1, (CHAINS, DEPTH, 3))))
        mixed = (ended * weights[..., None, None, None]).sum(1)  # as a product of matrices it would be TF32 on a GPU
        return torch.addcmul(mixed, 1 - share[..., None, None], images).clamp(0, 1)


def _chains(images: Tensor, depths: Tensor, kinds: Tensor) -> Tensor:
    """The image at the end of each chain, [B,K,C,H,W].

    depths   [B,K] place of a chain's last change, from 0
    kinds    [B,K,DEPTH] change, level and sign at each place
    """
    made = (images * 255).round().to(torch.uint8).repeat_interleave(CHAINS, 0)
    unused = torch.arange(DEPTH, device=depths.device) > depths.unsqueeze(2)
    # Images of one change are put next to each other by the host, which waits and sends twice, not for each change.
    chosen = kinds.masked_fill(unused, -1).flatten(0, 1).T.cpu()
    order = chosen.argsort(dim=1, stable=True)
    for groups, rows in zip(chosen.gather(1, order), order.to(made.device), strict=True):
        found, counts = groups.unique_consecutive(return_counts=True)
        for kind, group in zip(found.tolist(), rows.split(counts.tolist()), strict=True):
            if kind >= 0:
                made[group] = _applied(made[group], kind)
    return as_floats(made).unflatten(0, (len(images), CHAINS))


def _kinds(numbers: Tensor) -> Tensor:
    """Numbers [...,3] in [0, 1) -> the change, its level and its sign as one number, [...]."""
    change, level, sign = (numbers * numbers.new_tensor([len(CHANGES), LEVELS, 2])).long().unbind(-1)
    has_level, has_sign = (
        torch.tensor([name not in without for name in CHANGES], device=change.device)[change]
        for without in (WITHOUT_LEVEL, WITHOUT_SIGN)
    )
    level = level * has_level
    return (change * LEVELS + level) * 2 + sign * (has_sign & (level > 0))


def _applied(images: Tensor, kind: int) -> Tensor:
    change, level, negative = kind // (2 * LEVELS), kind // 2 % LEVELS, bool(kind % 2)
    return list(CHANGES.values())[change](images, level, negative)
