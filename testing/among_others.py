"""Models whose answer to an image depends on the other images of the batch, as with batch statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from threat_specification.attacks.base import Classifier

ASKED = 4  # images that are asked about again
ROUNDING = 0.01  # difference of answers, relative to the spread of those to one image, that is no rounding


def depends_on_others(model: Classifier, images: Tensor, answers: Tensor) -> bool:
    """True if the answers [n,K] to images [n,C,H,W] would be others beside other images. Takes one pass.

    The first few are asked about again in a batch of the same size, whose other images are copies of the first one.
    Alone they would take other kernels, which round otherwise, and batch normalisation may refuse one image.

    False for one image, which has no others. Random answers differ in any case: see first if two passes agree.
    """
    few = min(ASKED, len(images) // 2)
    if not few:
        return False
    beside = images.clone()
    beside[few:] = images[:1]
    with torch.no_grad():
        before, after = answers[:few], model(beside)[:few]
    known = before.isfinite() & after.isfinite()
    spread = before.masked_fill(~known, -torch.inf).amax(1) - before.masked_fill(~known, torch.inf).amin(1)
    differs = torch.where(known, (after - before).abs(), 0) > ROUNDING * spread.amax().clamp_min(0)
    return bool((differs | (before.isfinite() != after.isfinite())).any())
