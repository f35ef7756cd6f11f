"""Certificates for projections, in float64 and from the images alone: nothing here uses the code under test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


def directions(
    image: np.ndarray, label: int, anchors: np.ndarray, labels: np.ndarray, weights=None, mask=None, norm: str = "full"
) -> np.ndarray:
    """v_j(x) of the anchors of other classes, [N', D] float64; weights [K, K], mask [D] 0/1, norm full or masked."""
    others = labels != label
    difference = anchors[others].astype(np.float64) - image.astype(np.float64)
    seen = difference if mask is None else difference * mask
    squared = ((difference if norm == "full" else seen) ** 2).sum(1, keepdims=True)
    divisors = 1.0 if weights is None else weights[label, labels[others]].astype(np.float64)[:, None]
    return 2 * seen / squared / divisors


SMALL = 100  # pixels, up to which one nnls can have a column for each
TIGHT = 1e-5  # l2 distance from its half-space at which an anchor may count as binding, for points of length 1


@dataclass
class Certificate:
    excess: float  # largest <p, v_j>, minus the threshold
    residual: float  # distance of d - p from the normal cone at p, over |d - p|
    gap: float  # relative error of |d - p|, bounded from above by weak duality
    active: int  # anchors with a positive multiplier


def certify(rows: np.ndarray, threshold: float, d: np.ndarray, p: np.ndarray, lower, upper) -> Certificate:
    """Measure how nearly p is the point of {rows p <= threshold, lower <= p <= upper} nearest to d, all [D].

    d - p must be a nonnegative combination of the tight rows plus a normal of the tight bounds; nnls finds it.
    """
    d, p, lower, upper = (np.asarray(value, dtype=np.float64) for value in (d, p, lower, upper))
    norms = np.linalg.norm(rows, axis=1) if len(rows) else np.zeros(0)
    slack = threshold - rows @ p
    tight = rows[slack <= TIGHT * norms * max(1.0, np.linalg.norm(p))]
    moved = d - p
    distance = np.linalg.norm(moved)
    at_upper, at_lower = p >= upper, p <= lower
    multipliers, left, counted = SOLVERS["joint" if len(d) <= SMALL else "alternating"](
        tight, moved, at_lower, at_upper
    )
    residual = np.linalg.norm(left[counted]) / max(distance, 1e-30)
    z = np.clip(d - tight.T @ multipliers, lower, upper)
    dual = 0.5 * ((z - d) ** 2).sum() + multipliers @ (tight @ z - threshold)
    gap = 1 - np.sqrt(max(2 * dual, 0)) / max(distance, 1e-30)
    excess = float((-slack).max()) if len(slack) else -np.inf
    return Certificate(
        excess, float(residual), float(gap), int((multipliers > 1e-9 * max(multipliers.max(initial=0), 1e-30)).sum())
    )


def _nnls(columns: np.ndarray, right: np.ndarray) -> np.ndarray:
    """scipy's, which aborts the process (1.17.1) where columns outnumber rows: zero rows change nothing."""
    if columns.shape[1] == 0:
        return np.zeros(0)
    missing = max(0, columns.shape[1] + 1 - columns.shape[0])
    columns, right = np.pad(columns, ((0, missing), (0, 0))), np.pad(right, (0, missing))
    return nnls(columns, right, maxiter=100 * columns.shape[1])[0]


def _joint(tight: np.ndarray, moved: np.ndarray, at_lower: np.ndarray, at_upper: np.ndarray) -> tuple:
    """One nnls over the rows and the normals of the tight bounds."""
    eye = np.eye(len(moved))
    scale = np.linalg.norm(tight, axis=1)
    columns = np.concatenate([tight / scale[:, None], eye[at_upper], -eye[at_lower]]).T
    found = _nnls(columns, moved)
    return found[: len(tight)] / scale, moved - columns @ found, np.ones(len(moved), dtype=bool)


def _alternating(tight: np.ndarray, moved: np.ndarray, at_lower: np.ndarray, at_upper: np.ndarray) -> tuple:
    """nnls over the rows; a tight pixel counts only while the rows' combination has the wrong sign there."""
    free = ~(at_upper | at_lower)
    counted = free
    multipliers = np.zeros(len(tight))
    left = moved
    for _ in range(50):
        if len(tight):
            scale = np.linalg.norm(tight, axis=1)
            multipliers = _nnls((tight / scale[:, None])[:, counted].T, moved[counted]) / scale
        left = moved - tight.T @ multipliers
        wrong = (at_upper & (left < 0) & ~at_lower) | (at_lower & (left > 0) & ~at_upper)
        previous, counted = counted, free | wrong
        if (previous == counted).all():
            break
    return multipliers, left, counted


SOLVERS = {"joint": _joint, "alternating": _alternating}
