"""Euclidean projection onto the capped simplex {c >= 0, sum c <= cap}."""

from __future__ import annotations

import torch
from torch import Tensor


def capped_simplex(weights: Tensor, cap: Tensor | float = 1.0) -> Tensor:
    """The nearest point to each row of weights [B,K] in {c >= 0, sum c <= cap}; cap: a number or [B], above 0.

    Where clipping at 0 leaves too large a sum, the nearest point lies on the simplex: (weights - tau)_+ with a sum of
    cap, and tau follows from the sorted weights (Held, Wolfe and Crowder 1974; Duchi et al. 2008). Points that are
    inside are returned as they are.
    """
    limit = torch.as_tensor(cap, dtype=weights.dtype, device=weights.device).expand(len(weights)).unsqueeze(1)
    clipped = weights.clamp_min(0)
    descending = weights.sort(1, descending=True).values
    counts = torch.arange(1, weights.shape[1] + 1, device=weights.device)
    candidates = (descending.double().cumsum(1) - limit) / counts
    positive = (descending > candidates).sum(1, keepdim=True).clamp_min(1)
    tau = candidates.gather(1, positive - 1).to(weights.dtype)
    on_simplex = (weights - tau).clamp_min(0)
    # Rounding may leave a sum just above the cap; a factor can only shrink it.
    on_simplex = on_simplex * (limit / on_simplex.sum(1, keepdim=True).clamp_min(1e-30)).clamp_max(1)
    return torch.where(clipped.sum(1, keepdim=True) <= limit, clipped, on_simplex)
