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
from threat_specification.projected_displacement.lengths import Differences, TangentLengths, squared_lengths
from threat_specification.projected_displacement.tangents import Tangents

BETA = 0.5
SAME_IMAGE = 1e-6  # an anchor of another class that is nearer than this (l2) equals the image: it has no direction

# The rounding error of <d, a> - <d, x> grows like 1 / sqrt(r), with r as in `lengths.py`. If r is below this value, the
# difference a - x is multiplied instead, at every call.
NEAR = 0.1

# Error of <d, v_j> with a float32 row of the tangent form, relative to |d| |v_j|: after the subtraction, equal pixels
# of an even part of an image are rounded alike, so that errors add up. Rows of the other forms are nearly exact.
ROW_ERROR = 2**-23


class UnsafeDirections:
    """v_j(x) for every anchor of another class.

    inverse  [B, N] 1 / (beta w n_j), with n_j = <u_j, M u_j>, or that of all of a_j - x for a segmented form with full
             norms; 0 where masked. M is the identity, but for the tangent form
    lengths  [B, N] ||M u_j||^2 float64, kept only where it is not n_j
    masked   [B, N] True if an anchor does not count: it has the label of the example, or no direction
    mask     [B, D] float 0/1 of the segmented form, else None
    metric   M of the tangent form, for masked vectors if there is a mask, else None
    weights  [B, N] w of the weighted form, else None
    longest  [B] the largest ||u_j|| / (beta w n_j), for the float32 error of displacements; at least every ||v_j||
    row_error        ROW_ERROR in the tangent form, else 0
    along_tangents   [B, N, k] what M M removes from products of the u_j, where `curvature` needs it, else k = 0
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
        tangents: Tangents | None = None,
    ) -> None:
        """full_norms: the segmented form divides by the norm of all of a_j - x, not of its masked part."""
        self.examples, self.matrix = examples, matrix
        self.mask = None if masks is None else masks.expand_as(examples).flatten(1).float()
        self.metric = None if tangents is None else tangents.metric(examples, self.mask, matrix)
        self.masked = labels.view(-1, 1) == anchor_labels.view(1, -1)
        self.weights = None if class_weights is None else class_weights[labels][:, anchor_labels]
        self.centred = examples.flatten(1) - self.matrix.centre
        self.differences = Differences(examples, matrix, self.mask)
        squared, scale = squared_lengths(self.differences, self.centred, self.masked)
        near = (squared < NEAR * scale) & ~self.masked
        self._refuse_equal_anchors(squared, anchor_labels)
        self.masked |= squared < SAME_IMAGE**2
        self.near = (near & ~self.masked).nonzero(as_tuple=True)
        fits = self.differences.fit_piece(len(self.near[0]))
        self.near_rows = self.differences.of(*self.near) if fits else None
        divisors, self.lengths = self._divisors(squared, scale, tangents, full_norms)
        weighted = divisors if self.weights is None else divisors * self.weights
        self.inverse = (1 / (BETA * weighted)).float().masked_fill_(self.masked, 0)
        self.row_error = 0.0 if self.metric is None else ROW_ERROR
        self.longest = (squared.sqrt() * self.inverse).amax(1).float()

    def _divisors(
        self, squared: Tensor, scale: Tensor, tangents: Tangents | None, full_norms: bool
    ) -> tuple[Tensor, Tensor | None]:
        """n_j, and ||M u_j||^2 where it is not n_j, else None; [B, N] float64."""
        divisors, lengths = squared, None
        self.along_tangents = squared.new_zeros(*squared.shape, 0, dtype=torch.float32)
        if self.metric is not None:
            found = TangentLengths.of(self.differences, self.centred, self.masked, self.metric, squared, scale)
            divisors, lengths = found.inner, found.outer
            if self.has_gram:
                self.along_tangents = found.scaled(self.metric)
        if self.mask is None or not full_norms:
            return divisors, lengths
        whole = Differences(self.examples, self.matrix)
        divisors, scale = squared_lengths(whole, self.centred, self.masked)
        if tangents is not None:
            metric = tangents.metric(self.examples, None, self.matrix)
            divisors = TangentLengths.of(whole, self.centred, self.masked, metric, divisors, scale).inner
        return divisors, squared if lengths is None else lengths

    def _refuse_equal_anchors(self, squared: Tensor, anchor_labels: Tensor) -> None:
        which, anchors = ((squared < SAME_IMAGE**2) & ~self.masked).nonzero(as_tuple=True)
        if self.mask is not None and len(which):
            visible = self.mask.any(1)[which]
            which, anchors = which[visible], anchors[visible]
            whole = Differences(self.examples, self.matrix)
            pieces = [whole.of(which[pair], anchors[pair]).norm(dim=1) for pair in whole.pieces(len(which))]
            equal = torch.cat(pieces) < SAME_IMAGE if pieces else visible[visible]
            which, anchors = which[equal], anchors[equal]
        if len(which):
            example, anchor = int(which[0]), int(anchors[0])
            raise UsageError(
                f"example {example} equals anchor {anchor}, which has another label ({int(anchor_labels[anchor])})"
                ": it has no direction towards it; leave one of the two out"
            )

    def directions(self, which: Tensor, anchors: Tensor) -> Tensor:
        """v_j(x) for P pairs of an example number and an anchor number, [P, D]; 0 where masked."""
        rows = self.differences.of(which, anchors)
        if self.metric is not None:
            self.metric.shorten(rows.unsqueeze(1), which)
        return rows * self.inverse[which, anchors].view(-1, 1)

    def working_rows(self, numbers: Tensor, anchors: Tensor, buffers: Buffers | None = None) -> tuple[Tensor, Tensor]:
        """v_j(x) for K anchors [R, K] of each of R examples, [R, K, D], 0 where masked; and ||v_j||, [R, K] float64.

        The length of masked rows, which pad working sets and are never active, is given as 1.

        With buffers, the rows are valid until the buffers are used again.
        """
        rows = self.matrix.rows(anchors.reshape(-1), buffers).view(*anchors.shape, self.matrix.shape[1])
        rows.sub_(self.examples.flatten(1)[numbers].unsqueeze(1))
        if self.mask is not None:
            rows.mul_(self.mask[numbers].unsqueeze(1))
        if self.metric is not None:
            self.metric.shorten(rows, numbers)
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
        if self.metric is not None:
            flat = self.metric.apply(flat, rows)
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
        for pair in self.differences.pieces(len(which)):
            wanted = (place[pair] >= 0).nonzero().flatten() + pair.start
            kept = self.near_rows
            apart = self.differences.of(which[wanted], anchors[wanted]) if kept is None else kept[wanted]
            along[place[wanted], anchors[wanted]] = (apart * flat[place[wanted]]).sum(1)

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
        if self.metric is not None:
            tangent = self.along_tangents[which, anchors]
            removed = tangent @ tangent.transpose(1, 2)
            products.sub_((removed + removed.transpose(1, 2)) / 2)
        return products.mul_(inverse.unsqueeze(2) * inverse.unsqueeze(1))

    def inscribed_radius(self) -> Tensor:
        """Radius of the largest l2 ball inside {PD <= 1}: min_j 1 / ||v_j||, [B]; inf if no anchor counts."""
        if self.lengths is not None:
            radii = 1 / (self.lengths.sqrt() * self.inverse).float()
        else:
            radii = (BETA / self.inverse if self.weights is None else BETA * self.weights / self.inverse).sqrt()
        return radii.masked_fill(self.masked, math.inf).amin(1)
