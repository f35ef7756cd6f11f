"""Several PD threats at the same images as one: the half-spaces of all of them, for one exact projection.

The set {PD_i <= threshold * level_i for all i} is {<p, v_ij> / level_i <= threshold for all i, j}: the half-spaces of a
single threat with the anchors of all.

Shapes: B batch, N anchors of all threats together, D = C*H*W; R chosen examples with A chosen anchors each; P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from threat_specification.base import BoundThreat
from threat_specification.projected_displacement.bound import BoundProjectedDisplacement
from threat_specification.projected_displacement.buffers import Buffers
from threat_specification.projected_displacement.directions import UnsafeDirections
from threat_specification.projected_displacement.warm_start import WarmStart


class BoundJoined(BoundProjectedDisplacement):
    """max_i PD_i / level_i at fixed images, of threats in any form; its bounds are those given."""

    has_gram = False  # products of directions of two forms have no Gram matrix
    mask = None  # each part has its own
    background = "radius"
    projection = "exact"

    def __init__(self, parts: Sequence[tuple[UnsafeDirections, float]]) -> None:
        """Take the bound threats and their levels."""
        BoundThreat.__init__(self, parts[0][0].examples)
        self.parts = parts
        self.row_error = max(part.row_error for part, _ in parts)
        self.longest = torch.stack([part.longest / level for part, level in parts]).amax(0)
        self.warm: WarmStart | None = None
        self.scaled = torch.zeros(len(self.examples), dtype=torch.int64, device=self.examples.device)

    def directions(self, which: Tensor, anchors: Tensor) -> Tensor:
        """Rows of P pairs, [P, D]; 0 where masked."""
        found = self.examples.new_zeros(len(which), self.examples[0].numel())
        for part, level, chosen, numbers in self._sorted(anchors):
            found += part.directions(which, numbers).mul_((chosen / level).unsqueeze(1))
        return found

    def working_rows(self, numbers: Tensor, anchors: Tensor, buffers: Buffers | None = None) -> tuple[Tensor, Tensor]:
        """Rows of A anchors of each of R examples, [R, A, D], and their lengths, [R, A] float64, above 0."""
        rows = self.examples.new_zeros(*anchors.shape, self.examples[0].numel())
        norms = torch.ones(anchors.shape, dtype=torch.float64, device=anchors.device)
        for part, level, chosen, inner in self._sorted(anchors):
            own, lengths = part.working_rows(numbers, inner)  # without buffers, which the next part would overwrite
            rows += own.mul_((chosen / level).unsqueeze(2))
            norms = torch.where(chosen, lengths / level, norms)
        return rows, norms

    def displacements(self, flat: Tensor, rows: Tensor | None = None, checked: bool = True) -> Tensor:
        """<d, v> / level of points [R, D] for the anchors of all parts, [R, N]; -inf where masked."""
        return torch.cat([part.displacements(flat, rows, checked) / level for part, level in self.parts], 1)

    def _sorted(self, anchors: Tensor) -> Iterator[tuple[UnsafeDirections, float, Tensor, Tensor]]:
        """Each part, its level, a mask of the anchors that are its own, and their numbers in it (any for others)."""
        first = 0
        for part, level in self.parts:
            count = part.masked.shape[1]
            inner = anchors - first
            yield part, level, (inner >= 0) & (inner < count), inner.clamp(0, count - 1)
            first += count
