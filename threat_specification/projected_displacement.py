"""The Projected Displacement threat (Muthukumar, Pal, Sulam, Vidal, arXiv 2501.18098).

For an image x with label y, anchors a_j with labels c_j and a perturbation d:

    v_j(x) = u_j / (beta w[y, c_j] ||u_j||^2)    u_j = a_j - x, beta = 1/2, only j with c_j != y
    PD(x, d) = max_j max(0, <d, v_j(x)>)

    plain       w = 1: a step of d = t (a_j - x) has threat at least 2 t; {PD <= 1} is the Voronoi cell of x among the
                anchors of other classes
    weighted    w a positive K x K matrix, large for near classes: confusing those is less of a threat
    segmented   u_j = m (a_j - x) with a 0/1 mask m of the object in x; says nothing about the background

Convex and positively homogeneous in d, but not a norm.

Edge cases
    no anchor of another class                  threat 0
    an anchor of another class equal to x       `bind` and `evaluate` raise and name both
    m (a_j - x) = 0, as where m is empty        that anchor does not count
    NaN or infinity in d                        `evaluate` and `project` raise
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from foundations.errors import UsageError, look_up
from foundations.hparams import ThreatHparams
from threat_specification.anchor_matrix import PRODUCTS, AnchorMatrix, devices_from
from threat_specification.anchors import AnchorSet
from threat_specification.base import (
    BoundThreat,
    Threat,
    check_delta,
    check_images,
    check_threshold,
    difference,
    refuse_non_finite,
)
from threat_specification.class_weights import check_class_weights, check_labels_covered
from threat_specification.masks import BACKGROUNDS, MaskSource, check_masks, mask_source_from
from threat_specification.projection import WarmStart, project_exact
from threat_specification.rank_shards import RankAnchorMatrix, any_of, gather

BETA = 0.5
SAME_IMAGE = 1e-6  # an anchor of another class nearer than this leaves no direction

# ||a||^2 - 2<a,x> + ||x||^2 loses digits in proportion to 1 / r, r = ||a - x||^2 / (||a||^2 + ||x||^2), and
# <d, a> - <d, x> to 1 / sqrt(r). Below these values of r the difference a - x is formed instead:
NEAR_DISTANCE = 0.3  # for the distance, once
NEAR = 0.1  # for displacements, every time
ROUGH_DEVIATIONS = 6  # standard deviations of rounding within which an anchor may be the maximum
PIECE_BYTES = 1 << 26  # differences held at once; near pairs are kept between calls if they take no more


class BoundProjectedDisplacement(BoundThreat):
    """PD at fixed (x, y).

    inverse  [B, N] 1 / (beta w ||u_j||^2); 0 where masked
    masked   [B, N] True where an anchor does not count: it has the label of the example, or no direction
    mask     [B, D] float 0/1 of the segmented form, else None
    """

    warm: WarmStart | None = None  # what the last exact projection found
    fallbacks: int = 0  # rows that the exact projection left to scaling

    def __init__(
        self,
        threat: ProjectedDisplacement,
        examples: Tensor,
        labels: Tensor,
        masks: Tensor | None = None,
    ) -> None:
        super().__init__(examples)
        self.threat, self.matrix = threat, threat.matrix
        self.mask = None if masks is None else masks.expand_as(examples).flatten(1).float()
        self.masked = labels.view(-1, 1) == threat.labels.view(1, -1)
        self.weights = None if threat.class_weights is None else threat.class_weights[labels][:, threat.labels]
        self.centred = examples.flatten(1) - self.matrix.centre
        squared, scale = self._expanded_distances()
        self._recompute(squared, (squared < NEAR_DISTANCE * scale) & ~self.masked)
        near = (squared < NEAR * scale) & ~self.masked
        self._refuse_equal_anchors(squared)
        self.masked |= squared < SAME_IMAGE**2
        self.near = (near & ~self.masked).nonzero(as_tuple=True)
        self.near_rows = self._differences(*self.near) if self._fits_piece(len(self.near[0])) else None
        weighted = squared if self.weights is None else squared * self.weights
        self.inverse = (1 / (BETA * weighted)).float().masked_fill_(self.masked, 0)

    def _expanded_distances(self) -> tuple[Tensor, Tensor]:
        """||u_j||^2 and the size of what cancels in it, [B, N] float64, from products alone."""
        if self.mask is None:
            of_anchors = self.matrix.squared_norms.view(1, -1)
            inside = self.centred
        else:
            of_anchors = self.matrix.square_products(self.mask).double()
            inside = self.centred * self.mask
        scale = of_anchors + inside.square().sum(1, dtype=torch.float64).view(-1, 1)
        return scale - 2 * self.matrix.products(inside).double(), scale

    def _recompute(self, squared: Tensor, near: Tensor) -> None:
        """Replace squared distances of near pairs by those of the raw images. Empty masks have none, and 0 already."""
        which, anchors = near.nonzero(as_tuple=True)
        for pair in self._pieces(len(which)):
            rows = self._differences(which[pair], anchors[pair])
            squared[which[pair], anchors[pair]] = rows.square_().sum(1, dtype=torch.float64)

    def _refuse_equal_anchors(self, squared: Tensor) -> None:
        which, anchors = ((squared < SAME_IMAGE**2) & ~self.masked).nonzero(as_tuple=True)
        if self.mask is not None and len(which):
            visible = self.mask.any(1)[which]
            which, anchors = which[visible], anchors[visible]
            pieces = [self._raw(which[pair], anchors[pair]).norm(dim=1) for pair in self._pieces(len(which))]
            equal = torch.cat(pieces) < SAME_IMAGE if pieces else visible[visible]
            which, anchors = which[equal], anchors[equal]
        if len(which):
            example, anchor = int(which[0]), int(anchors[0])
            raise UsageError(
                f"example {example} equals anchor {anchor}, which has another label ({int(self.threat.labels[anchor])})"
                ": it has no direction towards it; leave one of the two out"
            )

    def _fits_piece(self, pairs: int) -> bool:
        return 4 * pairs * self.matrix.shape[1] <= PIECE_BYTES

    def _pieces(self, pairs: int) -> list[slice]:
        """Slices of a list of pairs, each small enough for its differences to be held."""
        step = max(1, PIECE_BYTES // (4 * self.matrix.shape[1]))
        return [slice(start, min(start + step, pairs)) for start in range(0, pairs, step)]

    def _raw(self, which: Tensor, anchors: Tensor) -> Tensor:
        return self.matrix.rows(anchors).sub_(self.examples.flatten(1)[which])

    def _differences(self, which: Tensor, anchors: Tensor) -> Tensor:
        """u_j for pairs of an example and an anchor, [P, D], from the uncentred images."""
        raw = self._raw(which, anchors)
        return raw if self.mask is None else raw.mul_(self.mask[which])

    def directions(self, which: Tensor, anchors: Tensor) -> Tensor:
        """v_j(x), [P, D], for P pairs of an example's and an anchor's number; 0 where masked."""
        return self._differences(which, anchors) * self.inverse[which, anchors].view(-1, 1)

    def displacements(self, flat: Tensor, rows: Tensor | None = None) -> Tensor:
        """<d, v_j(x)> for every anchor, [B, N], of perturbations [B, D]; -inf where masked.

        With `rows` (distinct numbers of R examples), flat is [R, D] and belongs to those alone; the answer is [R, N].
        NaN or infinity in flat raises.
        """
        if rows is None:
            mask, centred, inverse, masked = self.mask, self.centred, self.inverse, self.masked
        else:
            mask = None if self.mask is None else self.mask[rows]
            centred, inverse, masked = self.centred[rows], self.inverse[rows], self.masked[rows]
        flat = flat.float() if mask is None else flat * mask
        along = self.matrix.products(flat, centred)
        refuse_non_finite("delta", along[:, :1])  # what is not finite in d is not finite for any anchor
        if len(self.near[0]):
            self._correct_near(along, flat, rows)
        return along.mul_(inverse).masked_fill_(masked, -math.inf)

    def _correct_near(self, along: Tensor, flat: Tensor, rows: Tensor | None) -> None:
        """<d, u_j> of near pairs from the difference itself."""
        which, anchors = self.near
        place = which
        if rows is not None:
            where = torch.full((len(self.examples),), -1, device=flat.device)
            where[rows] = torch.arange(len(rows), device=flat.device)
            place = where[which]
        for pair in self._pieces(len(which)):
            wanted = (place[pair] >= 0).nonzero().flatten() + pair.start
            differences = (
                self._differences(which[wanted], anchors[wanted]) if self.near_rows is None else self.near_rows[wanted]
            )
            along[place[wanted], anchors[wanted]] = (differences * flat[place[wanted]]).sum(1)

    def evaluate(self, delta: Tensor) -> Tensor:
        """PD of each perturbation, [B] float32; 0 where no anchor counts."""
        check_delta(delta, self.examples)
        flat = delta.flatten(1)
        if self.matrix.has_rough_products and not flat.requires_grad:
            return self._evaluate_candidates(flat).clamp_min(0)
        return self.displacements(flat).amax(1).clamp_min(0)

    def _evaluate_candidates(self, flat: Tensor) -> Tensor:
        """max_j <d, v_j>, [B]: rough products leave a few anchors that can be the maximum; those are done exactly."""
        flat = flat.float() if self.mask is None else flat * self.mask
        along, deviation = self.matrix.rough_products(flat, self.centred)
        refuse_non_finite("delta", along[:, :1])
        along.mul_(self.inverse).masked_fill_(self.masked, -math.inf)
        slack = deviation.mul_(self.inverse).mul_(ROUGH_DEVIATIONS)
        slack[self.near] = math.inf
        certain = (along - slack).amax(1, keepdim=True).clamp_min(0)
        which, anchors = (along + slack >= certain).nonzero(as_tuple=True)
        threat = flat.new_zeros(len(flat))
        for pair in self._pieces(len(which)):
            exact = (self.directions(which[pair], anchors[pair]) * flat[which[pair]]).sum(1)
            threat.scatter_reduce_(0, which[pair], exact, "amax")
        return threat

    def bounds(self, lower: Tensor | None, upper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The bounds given, or the pixel box; outside the mask as `background` of the threat says."""
        lower, upper = super().bounds(lower, upper)
        if self.mask is None:
            return lower, upper
        inside = self.mask.view_as(self.examples) > 0
        return BACKGROUNDS[self.threat.background](lower, upper, inside, self.examples)

    def project(
        self,
        delta: Tensor,
        threshold: float,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
        method: str | None = None,
    ) -> Tensor:
        """A point of {PD <= threshold} and the bounds, found by an entry of `PROJECTIONS` (else the threat's own)."""
        check_delta(delta, self.examples)
        refuse_non_finite("delta", delta)
        check_threshold(threshold)
        return look_up(PROJECTIONS, method or self.threat.projection, "projection")(
            self, delta, threshold, lower, upper
        )

    def inscribed_radius(self) -> Tensor:
        """Radius of the largest l2 ball inside {PD <= 1}: min_j beta w ||u_j|| = min_j 1 / ||v_j||, [B]; else inf."""
        squared = BETA / self.inverse if self.weights is None else BETA * self.weights / self.inverse
        return squared.masked_fill(self.masked, math.inf).amin(1).sqrt()


PROJECTIONS: dict[str, Callable[..., Tensor]] = {"exact": project_exact, "scale": BoundProjectedDisplacement.scale}


@dataclass(frozen=True)
class Binding:
    """An anchor that a perturbation moves towards."""

    anchor: int  # its number in the set
    label: int
    index: int | None  # in the training set it came from, where that is known
    threat: float  # <d, v_j>


class ProjectedDisplacement(Threat):
    """PD over a set of anchors, by matrix products: one B x D x N product for each evaluation of a bound threat.

    class_weights   [K, K] of weighted=True; kept as they are used, in float32
    mask_source     of segmented=True: "center", "grabcut", "sam:CHECKPOINT", "file:PATH" or a callable of images
                    [B,C,H,W] that returns bool [B,1,H,W] or [B,C,H,W]; asked once per image. Or pass masks= per call
    projection      that is used where none is named with the call: an entry of PROJECTIONS
    background      what a projection lets pixels outside the mask do: an entry of masks.BACKGROUNDS
    product         how <d, a_j> is computed: an entry of anchor_matrix.PRODUCTS
    """

    name = "PD"

    def __init__(
        self,
        hparams: ThreatHparams | None = None,
        weighted: bool = False,
        segmented: bool = False,
        anchors: AnchorSet | None = None,
        source: Callable[[], AnchorSet] | None = None,
        class_weights: Tensor | None = None,
        mask_source: MaskSource | str | None = None,
        background: str = "frozen",
        projection: str = "exact",
        product: str = "float32",
    ) -> None:
        if anchors is None and source is None:
            raise UsageError("ProjectedDisplacement needs anchors=AnchorSet(...) or source=, a callable returning one")
        if weighted != (class_weights is not None):
            came = "none" if class_weights is None else "some with weighted=False"
            raise UsageError(
                f"weighted PD: expected weighted=True with class_weights=[K, K], got {came}; give both or neither"
            )
        if mask_source is not None and not segmented:
            raise UsageError("mask_source: only the segmented form has masks; use segmented=True or leave it out")
        look_up(BACKGROUNDS, background, "background")
        look_up(PROJECTIONS, projection, "projection")
        look_up(PRODUCTS, product, "product")
        self.hparams = hparams or ThreatHparams()
        self.anchors, self.source, self.product = anchors, source, product
        self.weighted, self.segmented, self.background = weighted, segmented, background
        self.projection = projection
        self.class_weights = None if class_weights is None else check_class_weights(class_weights)
        self.mask_source = None if mask_source is None else mask_source_from(mask_source)
        self.name = "PD" + (weighted or segmented) * "-" + weighted * "W" + segmented * "S"
        self._num_devices = 1
        self._over_ranks = False
        self._is_prepared = False

    def prepare(self, num_devices: int = 1, device: torch.device | str | None = None, over_ranks: bool = False) -> Self:
        """Load the anchors, place them, cache what depends on them alone; returns self.

        num_devices > 1 divides the anchors over that many GPUs, or as many as there are; on the CPU into so many parts.
        over_ranks: the anchors given are this process's part of all, and all processes work on the same examples.
        """
        if num_devices < 1:
            raise UsageError(f"num_devices: expected a number from 1 up, got {num_devices}")
        if self.anchors is None:
            assert self.source is not None
            self.anchors = self.source()
        home = torch.device(device) if device is not None else self.anchors.images.device
        matrix = RankAnchorMatrix if over_ranks else AnchorMatrix
        self.matrix = matrix(
            self.anchors.images, self.hparams.num_chunks, devices_from(home, num_devices), self.product
        )
        self.labels, self.indices = self.anchors.labels.to(home), self.anchors.indices
        if over_ranks:
            self.labels = gather(self.labels)
            self.indices = None if self.indices is None else gather(self.indices.to(home))
        if self.class_weights is not None:
            check_labels_covered(self.class_weights, self.labels, "anchors")
            self.class_weights = self.class_weights.to(home)
        self._num_devices, self._over_ranks, self._is_prepared = num_devices, over_ranks, True
        return self

    def bind(
        self, examples: Tensor, labels: Tensor, masks: Tensor | None = None, indices: Tensor | None = None
    ) -> BoundProjectedDisplacement:
        """Fix examples and labels. Segmented: masks, or what the mask source says (a file goes by data set indices)."""
        check_images(examples, labels)
        if not self._is_prepared or self.labels.device != examples.device:
            self.prepare(self._num_devices, examples.device, self._over_ranks)
        assert self.anchors is not None
        if examples.shape[1:] != self.anchors.images.shape[1:]:
            shape = list(self.anchors.images.shape[1:])
            raise UsageError(f"examples: expected shape [B, ...] of the anchors' {shape}, got {list(examples.shape)}")
        if self.class_weights is not None:
            check_labels_covered(self.class_weights, labels, "examples")
        examples = examples.detach().float()
        return BoundProjectedDisplacement(self, examples, labels, self._masks(examples, masks, indices))

    def _masks(self, examples: Tensor, masks: Tensor | None, indices: Tensor | None) -> Tensor | None:
        if not self.segmented:
            if masks is not None:
                raise UsageError("masks: only the segmented form has masks; use segmented=True or leave them out")
            return None
        if masks is None and self.mask_source is None:
            raise UsageError(
                "segmented PD: expected masks= with the call or mask_source= when the threat is made, got neither"
            )
        if masks is None:
            assert self.mask_source is not None
            masks = self.mask_source(examples, indices)
        return check_masks(masks, examples).to(examples.device)

    def explain(
        self, examples: Tensor, labels: Tensor, perturbed_examples: Tensor, top: int = 3, **context: Any
    ) -> list[list[Binding]]:
        """For each example the anchors with the largest positive displacement, at most `top`, largest first."""
        check_images(examples, labels, perturbed_examples)
        bound = self.bind(examples, labels, **context)
        along = bound.displacements(difference(perturbed_examples, examples).flatten(1))
        values, numbers = along.topk(min(top, along.shape[1]), 1)
        return [
            [self._binding(number, value) for value, number in zip(row, which, strict=True) if value > 0]
            for row, which in zip(values.tolist(), numbers.tolist(), strict=True)
        ]

    def _binding(self, number: int, threat: float) -> Binding:
        index = None if self.indices is None else int(self.indices[number])
        return Binding(number, int(self.labels[number]), index, threat)

    def equals_other_anchor(self, images: Tensor, labels: Tensor) -> Tensor:
        """[B] bool: which images, of the anchors' type, equal an anchor of another label; `bind` refuses those."""
        if self.anchors is None:
            self.prepare(self._num_devices)
        assert self.anchors is not None
        equal = self.anchors.equal_with_another_label(images, labels)
        return any_of(equal) if self._over_ranks else equal

    def inscribed_radius(self, examples: Tensor, labels: Tensor, **context: Any) -> Tensor:
        """Radius, per unit of threshold, of the l2 ball inside {PD <= threshold}: beta min_j w ||u_j||, [B]."""
        return self.bind(examples, labels, **context).inscribed_radius()
