"""The space in which images are compared when anchors are chosen: raw pixels, or normalised channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SelectionSpace:
    """(pixel - mean) / std per channel, for pixels in [0, 1]; 8-bit images stand for their 255th parts.

    One mean and std serve all channels. A channel of std 0, constant in all images, has no effect.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def affine(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and factor [D] of flattened images: (values - shift) * factor is the space, for 8 bits 255 times it.

        RAW has shift 0 and factor 1, which change no bit.
        """
        largest = 255 if images.dtype == torch.uint8 else 1
        factors = [1 / deviation if deviation > 0 else 0.0 for deviation in self.std]
        shift, factor = (
            torch.tensor(values, dtype=torch.float64, device=images.device).float().view(-1, 1, 1)
            for values in ([largest * mean for mean in self.mean], factors)
        )
        return shift.expand(images.shape[1:]).flatten(), factor.expand(images.shape[1:]).flatten()

    def features(self, images: Tensor) -> Tensor:
        """Images in this space, flattened, [n, D] float32; for 8-bit images 255 times that."""
        shift, factor = self.affine(images)
        return (images.flatten(1).float() - shift) * factor


RAW = SelectionSpace()
