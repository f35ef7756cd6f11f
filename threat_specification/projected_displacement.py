"""The Projected Displacement threat (Muthukumar, Pal, Sulam, Vidal, arXiv 2501.18098).

For an image x with label y, anchors a_j with labels c_j and a perturbation d:

    v_j(x) = (a_j - x) / (beta ||a_j - x||^2)    beta = 1/2, only j with c_j != y
    PD(x, d) = max_j max(0, <d, v_j(x)>)

so that a step of d = t (a_j - x) has threat at least 2 t, and {PD <= 1} is the Voronoi cell of x among
the anchors of other classes. Convex and positively homogeneous in d, but not a norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from foundations.errors import UsageError
from foundations.hparams import ThreatHparams
from threat_specification.anchors import AnchorSet
from threat_specification.base import BoundThreat, Threat, check_images

BETA = 0.5
SAME_IMAGE = 1e-6  # an anchor of another class nearer than this leaves no direction

# ||a||^2 - 2<a,x> + ||x||^2 loses digits in proportion to (||a||^2 + ||x||^2) / ||a - x||^2; where that
# exceeds 1 / NEAR the difference a - x is formed instead.
NEAR = 0.1


class BoundProjectedDisplacement(BoundThreat):
    """PD at fixed (x, y).

    inverse  [B, N] 1 / (beta ||a_j - x||^2); 0 where masked
    masked   [B, N] True where the anchor has the label of the example
    """

    def __init__(self, threat: ProjectedDisplacement, examples: Tensor, labels: Tensor) -> None:
        super().__init__(examples)
        self.threat = threat
        self.masked = labels.view(-1, 1) == threat.labels.view(1, -1)
        self.centred = examples.flatten(1) - threat.centre
        squared_distance = (
            self.centred.square().sum(1, keepdim=True)
            - 2 * threat.products(self.centred)
            + threat.squared_norms.view(1, -1)
        )
        scale = self.centred.square().sum(1, keepdim=True) + threat.squared_norms.view(1, -1)
        self.near = ((squared_distance < NEAR * scale) & ~self.masked).nonzero(as_tuple=True)
        self.near_rows = self._differences(*self.near)
        squared_distance[self.near] = self.near_rows.square().sum(1)
        self._refuse_equal_anchor(squared_distance)
        self.inverse = torch.where(self.masked, 0.0, 1 / (BETA * squared_distance))

    def _differences(self, which: Tensor, anchors: Tensor) -> Tensor:
        """a_j - x for pairs of an example and an anchor, [P, D], from the uncentred images."""
        return self.threat.rows(anchors) - self.examples.flatten(1)[which]

    def _refuse_equal_anchor(self, squared_distance: Tensor) -> None:
        equal = ((squared_distance < SAME_IMAGE**2) & ~self.masked).nonzero()
        if len(equal):
            example, anchor = equal[0].tolist()
            raise UsageError(
                f"example {example} equals anchor {anchor}, which has another label ({int(self.threat.labels[anchor])})"
                ": it has no direction towards it; leave one of the two out"
            )

    def directions(self, which: Tensor, anchors: Tensor) -> Tensor:
        """v_j(x), [P, D], for P pairs of an example's and an anchor's number."""
        return self._differences(which, anchors) * self.inverse[which, anchors].view(-1, 1)

    def displacements(self, flat: Tensor, rows: Tensor | None = None) -> Tensor:
        """<d, v_j(x)> for every anchor, [B, N], of perturbations [B, D]; -inf where masked.

        With `rows` (numbers of R examples), flat is [R, D] and belongs to those alone; the answer is [R, N].
        """
        if rows is None:
            rows = torch.arange(len(self.examples), device=flat.device)
        along = self.threat.products(flat) - (flat * self.centred[rows]).sum(1, keepdim=True)
        place = torch.full((len(self.examples),), -1, device=flat.device)
        place[rows] = torch.arange(len(rows), device=flat.device)
        wanted = place[self.near[0]] >= 0
        near_at, near_anchor = place[self.near[0]][wanted], self.near[1][wanted]
        along[near_at, near_anchor] = (self.near_rows[wanted] * flat[near_at]).sum(1)
        return (along * self.inverse[rows]).masked_fill_(self.masked[rows], -math.inf)

    def evaluate(self, delta: Tensor) -> Tensor:
        """PD of each perturbation, [B] float32; 0 where no anchor has another label."""
        return self.displacements(delta.flatten(1)).amax(1).clamp_min(0)

    def project(
        self,
        delta: Tensor,
        threshold: float,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
        method: str = "scale",
    ) -> Tensor:
        """A point of {PD <= threshold} and the bounds, found by an entry of `PROJECTIONS`."""
        return PROJECTIONS[method](self, delta, threshold, lower, upper)


PROJECTIONS: dict[str, Callable[..., Tensor]] = {"scale": BoundProjectedDisplacement.scale}


class ProjectedDisplacement(Threat):
    """PD over a set of anchors, by matrix products: one B x D x N product for each evaluation of a bound threat."""

    name = "PD"

    def __init__(
        self,
        hparams: ThreatHparams | None = None,
        weighted: bool = False,
        segmented: bool = False,
        anchors: AnchorSet | None = None,
        source: Callable[[], AnchorSet] | None = None,
    ) -> None:
        if weighted or segmented:
            raise UsageError("the weighted and segmented forms of PD are not there yet; use weighted=segmented=False")
        if anchors is None and source is None:
            raise UsageError("ProjectedDisplacement needs anchors=AnchorSet(...) or source=, a callable returning one")
        self.hparams = hparams or ThreatHparams()
        self.anchors = anchors
        self.source = source
        self._is_prepared = False

    def prepare(self, num_devices: int = 1, device: torch.device | str | None = None) -> Self:
        """Load the anchors and cache what depends on them alone; returns self."""
        if self.anchors is None:
            assert self.source is not None
            self.anchors = self.source()
        anchors = self.anchors if device is None else self.anchors.to(device)
        self.labels = anchors.labels
        self.raw = anchors.floats()
        self.centre = self.raw.mean(0)
        self.matrix = self.raw - self.centre
        self.squared_norms = self.matrix.square().sum(1)
        self._is_prepared = True
        return self

    def products(self, vectors: Tensor) -> Tensor:
        """<v, a_j - centre> for vectors [B, D], [B, N]."""
        return vectors @ self.matrix.T

    def rows(self, anchors: Tensor) -> Tensor:
        """Uncentred anchors by number, [P, D] float32 in [0, 1]."""
        return self.raw[anchors]

    def bind(self, examples: Tensor, labels: Tensor) -> BoundProjectedDisplacement:
        check_images(examples, labels)
        if not self._is_prepared or self.labels.device != examples.device:
            self.prepare(device=examples.device)
        if examples[0].numel() != self.matrix.shape[1]:
            raise UsageError(
                f"examples of shape {list(examples.shape[1:])} do not fit anchors of {self.matrix.shape[1]} pixels"
            )
        return BoundProjectedDisplacement(self, examples.float(), labels)
