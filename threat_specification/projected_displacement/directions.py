"""The unsafe directions v_j(x) at fixed images and labels, and products with them; `threat.py` defines them.

Shapes: B batch, N anchors, D = C*H*W; R chosen examples with K chosen anchors each; P pairs of example and anchor.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from foundations.errors import UsageError
from threat_specification.base import refuse_non_finite
from threat_specification.projected_displacement.anchor_matrix import AnchorMatrix
from threat_specification.projected_displacement.buffers import Buffers
from threat_specification.projected_displacement.pace import pace_of

BETA = 0.5
SAME_IMAGE = 1e-6  # an anchor of another class that is nearer than this (l2) equals the image: it has no direction

# Let r = ||a - x||^2 / (||a||^2 + ||x||^2). The rounding error of ||a||^2 - 2<a,x> + ||x||^2 grows like 1 / r, that of
# <d, a> - <d, x> like 1 / sqrt(r). If r is below these values, the difference a - x is computed instead:
NEAR_DISTANCE = 0.3  # for distances, once
NEAR = 0.1  # for displacements, at every call


class UnsafeDirections:
    """v_j(x) for every anchor of another class.

    inverse  [B, N] 1 / (beta w n_j), with n_j = ||u_j||^2, or ||a_j - x||^2 for a segmented form with full norms; 0
             where masked
    lengths  [B, N] ||u_j||^2 float64, kept only where it is not n_j
    masked   [B, N] True if an anchor does not count: it has the label of the example, or no direction
    mask     [B, D] float 0/1 of the segmented form, else None
    weights  [B, N] w of the weighted form, else None
    """

    def __init__(
        self,
        examples: Tensor,
        labels: Tensor,
        matrix: AnchorMatrix,
        anchor_labels: Tensor,
        class_weights: Tensor | None = None,
        masks: Tensor | None = None,
        full_norms: bool = True,
    ) -> None:
        """full_norms: the segmented form divides by the squared norm of all of a_j - x, not of its masked part."""
        self.examples, self.matrix = examples, matrix
        self._piece_bytes = pace_of(examples.device).piece_bytes
        self.mask = None if masks is None else masks.expand_as(examples).flatten(1).float()
        self.masked = labels.view(-1, 1) == anchor_labels.view(1, -1)
        self.weights = None if class_weights is None else class_weights[labels][:, anchor_labels]
        self.centred = examples.flatten(1) - self.matrix.centre
        squared, scale = self._squared_lengths(self.mask)
        near = (squared < NEAR * scale) & ~self.masked
        self._refuse_equal_anchors(squared, anchor_labels)
        self.masked |= squared < SAME_IMAGE**2
        self.near = (near & ~self.masked).nonzero(as_tuple=True)
        self.near_rows = self._differences(*self.near) if self._fits_piece(len(self.near[0])) else None
        self.lengths: Tensor | None = None
        if self.mask is not None and full_norms:
            self.lengths, squared = squared, self._squared_lengths(None)[0]
        weighted = squared if self.weights is None else squared * self.weights
        self.inverse = (1 / (BETA * weighted)).float().masked_fill_(self.masked, 0)

    def _squared_lengths(self, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """||m (a_j - x)||^2, and the magnitude of the terms that cancel in it; [B, N] float64.

        From products alone, but for near pairs, whose digits would be lost: those come from the raw images. Examples
        with an empty mask have no near pairs; their lengths are 0 already.
        """
        if mask is None:
            of_anchors = self.matrix.squared_norms.view(1, -1)
            inside = self.centred
        else:
            of_anchors = self.matrix.square_products(mask).double()
            inside = self.centred * mask
        scale = of_anchors + inside.square().sum(1, dtype=torch.float64).view(-1, 1)
        squared = scale - 2 * self.matrix.products(inside).double()
        which, anchors = ((squared < NEAR_DISTANCE * scale) & ~self.masked).nonzero(as_tuple=True)
        for pair in self._pieces(len(which)):
            rows = self._raw(which[pair], anchors[pair])
            rows = rows if mask is None else rows.mul_(mask[which[pair]])
            squared[which[pair], anchors[pair]] = rows.square_().sum(1, dtype=torch.float64)
        return squared, scale

    def _refuse_equal_anchors(self, squared: Tensor, anchor_labels: Tensor) -> None:
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
                f"example {example} equals anchor {anchor}, which has another label ({int(anchor_labels[anchor])})"
                ": it has no direction towards it; leave one of the two out"
            )

    def _fits_piece(self, pairs: int) -> bool:
        return 4 * pairs * self.matrix.shape[1] <= self._piece_bytes

    def _pieces(self, pairs: int) -> list[slice]:
        """Slices of a list of pairs, each so small that its differences fit into `piece_bytes`."""
        step = max(1, self._piece_bytes // (4 * self.matrix.shape[1]))
        return [slice(start, min(start + step, pairs)) for start in range(0, pairs, step)]

    def _raw(self, which: Tensor, anchors: Tensor) -> Tensor:
        return self.matrix.rows(anchors).sub_(self.examples.flatten(1)[which])

    def _differences(self, which: Tensor, anchors: Tensor) -> Tensor:
        """u_j for pairs of an example and an anchor, [P, D], from the uncentred images."""
        raw = self._raw(which, anchors)
        return raw if self.mask is None else raw.mul_(self.mask[which])

    def directions(self, which: Tensor, anchors: Tensor) -> Tensor:
        """v_j(x) for P pairs of an example number and an anchor number, [P, D]; 0 where masked."""
        return self._differences(which, anchors) * self.inverse[which, anchors].view(-1, 1)

    def working_rows(self, numbers: Tensor, anchors: Tensor, buffers: Buffers | None = None) -> tuple[Tensor, Tensor]:
        """v_j(x) for K anchors [R, K] of each of R examples, [R, K, D], 0 where masked; and ||v_j||, [R, K] float64.

        The length of masked rows, which pad working sets and are never active, is given as 1.

        With buffers, the rows are valid until the buffers are used again.
        """
        rows = self.matrix.rows(anchors.reshape(-1), buffers).view(*anchors.shape, self.matrix.shape[1])
        rows.sub_(self.examples.flatten(1)[numbers].unsqueeze(1))
        if self.mask is not None:
            rows.mul_(self.mask[numbers].unsqueeze(1))
        inverse = self.inverse[numbers].gather(1, anchors)
        if self.lengths is not None:
            norms = self.lengths[numbers].gather(1, anchors).sqrt() * inverse.double()
        else:
            scale = inverse if self.weights is None else inverse / self.weights[numbers].gather(1, anchors)
            norms = (scale.double() / BETA).sqrt()
        return rows.mul_(inverse.unsqueeze(2)), norms.masked_fill_(norms == 0, 1)

    def displacements(self, flat: Tensor, rows: Tensor | None = None, checked: bool = True) -> Tensor:
        """<d, v_j(x)> of perturbations `flat` [B, D] for every anchor, [B, N]; -inf where masked.

        With `rows` (distinct numbers of R examples), flat is [R, D] for these examples only, and the result is [R, N].
        Raises UsageError if flat contains NaN or infinity, unless it is known not to (`checked` False): the check makes
        the host wait for a device.
        """
        if rows is None:
            mask, centred, inverse, masked = self.mask, self.centred, self.inverse, self.masked
        else:
            mask = None if self.mask is None else self.mask[rows]
            centred, inverse, masked = self.centred[rows], self.inverse[rows], self.masked[rows]
        flat = flat.float() if mask is None else flat * mask
        along = self.matrix.products(flat, centred)
        if checked:
            refuse_non_finite("delta", along[:, :1])  # NaN or infinity in d reaches the products with all anchors
        if len(self.near[0]):
            self._correct_near(along, flat, rows)
        return along.mul_(inverse).masked_fill_(masked, -math.inf)

    def _correct_near(self, along: Tensor, flat: Tensor, rows: Tensor | None) -> None:
        """Replace <d, u_j> of near pairs by products with the difference itself."""
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

    @property
    def has_gram(self) -> bool:
        """True if `curvature` can use the anchors' Gram matrix, which does not depend on the examples."""
        return self.mask is None and self.matrix.has_gram

    @cached_property
    def origins(self) -> Tensor:
        """<x, a_j> of centred images, [B, N]."""
        return self.matrix.products(self.centred)

    @cached_property
    def squared_lengths(self) -> Tensor:
        """<x, x> of centred images, [B]."""
        return self.centred.square().sum(1)

    def curvature(self, numbers: Tensor, anchors: Tensor) -> Tensor:
        """<v_i, v_j> of K anchors [R, K] of each of R examples, [R, K, K], from the Gram matrix; 0 where masked.

        The result is exactly symmetric, since a Cholesky factorisation reads only one triangle.
        """
        gram, which = self.matrix.gram, numbers.unsqueeze(1)
        origins, inverse = self.origins[which, anchors], self.inverse[which, anchors]
        places = anchors.unsqueeze(2) * len(gram) + anchors.unsqueeze(1)
        # This is several times as fast as indexing with two tensors.
        products = gram.view(-1).index_select(0, places.view(-1)).view(places.shape)
        products.sub_(origins.unsqueeze(2) + origins.unsqueeze(1)).add_(self.squared_lengths[which].unsqueeze(2))
        return products.mul_(inverse.unsqueeze(2) * inverse.unsqueeze(1))

    def inscribed_radius(self) -> Tensor:
        """Radius of the largest l2 ball inside {PD <= 1}: min_j 1 / ||v_j||, [B]; inf if no anchor counts."""
        if self.lengths is not None:
            radii = 1 / (self.lengths.sqrt() * self.inverse).float()
        else:
            radii = (BETA / self.inverse if self.weights is None else BETA * self.weights / self.inverse).sqrt()
        return radii.masked_fill(self.masked, math.inf).amin(1)
