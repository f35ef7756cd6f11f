"""The tangent form in float64 loops, from its definition alone: nothing here uses the code under test.

v_j = M u_j / (w/2 <u_j, M u_j>)      M = (I + T^T T / weight)^-1, the rows of T being tangents of length 1
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter

ALL = ("brightness", "contrast", "affine", "blur")


def tangents(image: np.ndarray, names: tuple[str, ...] = ALL, mask: np.ndarray | None = None) -> np.ndarray:
    """T [n, D] at an image [C, H, W]; tangents shorter than 1e-4 are left out. Pixels outside the mask [D] are 0."""
    image = image.astype(np.float64)
    channels, height, width = image.shape
    found = []
    if "brightness" in names:
        found.append(np.ones_like(image))
    if "contrast" in names:
        found.append(image - image.mean())
    if "affine" in names:
        smooth = np.stack([gaussian_filter(channel, 0.7, mode="nearest") for channel in image])
        for move in ("1", "x", "y"):
            for axis in (1, 2):
                tangent = np.zeros_like(image)
                for c, i, j in np.ndindex(channels, height, width):
                    step = (1, 0) if axis == 1 else (0, 1)
                    after = smooth[c, min(i + step[0], height - 1), min(j + step[1], width - 1)]
                    before = smooth[c, max(i - step[0], 0), max(j - step[1], 0)]
                    place = {"1": 1.0, "x": 2 * j / (width - 1) - 1, "y": 2 * i / (height - 1) - 1}[move]
                    tangent[c, i, j] = place * (after - before) / 2
                found.append(tangent)
    if "blur" in names:
        found.append(np.stack([gaussian_filter(channel, 1.0, mode="nearest") for channel in image]) - image)
    rows = np.stack(found).reshape(len(found), -1)
    rows = rows if mask is None else rows * mask
    lengths = np.linalg.norm(rows, axis=1)
    return rows[lengths > 1e-4] / lengths[lengths > 1e-4][:, None]


def _times_metric(rows: np.ndarray, tangent: np.ndarray, weight: float) -> np.ndarray:
    """M applied to rows [n, D], by solving (weight I + T T^T) z = T row (Woodbury's identity)."""
    small = weight * np.eye(len(tangent)) + tangent @ tangent.T
    return rows - np.linalg.solve(small, tangent @ rows.T).T @ tangent


def directions(
    image: np.ndarray,
    label: int,
    anchors: np.ndarray,
    labels: np.ndarray,
    class_weights: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    norm: str = "full",
    names: tuple[str, ...] = ALL,
    weight: float = 0.1,
) -> np.ndarray:
    """v_j(x) of the anchors of other classes, [N', D] float64; image [C, H, W], anchors [N, D], mask [D]."""
    others = labels != label
    difference = anchors[others].astype(np.float64) - image.astype(np.float64).ravel()
    seen = difference if mask is None else difference * mask
    moved = _times_metric(seen, cached(image.tobytes(), image.shape, str(image.dtype), names, _key(mask)), weight)
    squared = (seen * moved).sum(1)
    if mask is not None and norm == "full":
        whole = _times_metric(difference, cached(image.tobytes(), image.shape, str(image.dtype), names, None), weight)
        squared = (difference * whole).sum(1)
    divisors = 1.0 if class_weights is None else class_weights[label, labels[others]].astype(np.float64)
    return 2 * moved / (squared * divisors)[:, None]


def _key(mask: np.ndarray | None) -> bytes | None:
    return None if mask is None else mask.astype(np.float64).tobytes()


@cache  # the loops over pixels are slow, and the images of the tests few
def cached(image: bytes, shape: tuple, dtype: str, names: tuple[str, ...], mask: bytes | None) -> np.ndarray:
    return tangents(
        np.frombuffer(image, dtype).reshape(shape), names, None if mask is None else np.frombuffer(mask, np.float64)
    )
