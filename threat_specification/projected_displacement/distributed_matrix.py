"""Anchors distributed over the processes of a group, for sets that do not fit on one device.

Invariant: all processes work on the same examples in lockstep (apart_matrix.py is for those that do not). Each process
multiplies with its own part of the anchors, and an all-gather after every product gives all of them the whole [B, N].
So all later steps (projections, attacks) are the same in all processes, and no process waits for a collective operation
that another does not reach.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from foundations.errors import UsageError
from foundations.pixels import as_floats
from threat_specification.projected_displacement.anchor_matrix import AnchorMatrix
from threat_specification.projected_displacement.buffers import Buffers

PIECE_BYTES = 1 << 28  # of anchors sent at a time


class DistributedAnchorMatrix(AnchorMatrix):
    """`AnchorMatrix` over the anchors of all processes, in rank order; `images` are those of this process."""

    def __init__(
        self,
        images: Tensor,
        num_chunks: bool | int = True,
        devices: Sequence[torch.device | str] = (),
    ) -> None:
        counts = gather(torch.tensor([len(images)], device=images.device)).tolist()
        if 0 in counts:
            raise UsageError(f"anchors over {len(counts)} processes: expected at least one for each, got {sum(counts)}")
        flat = images.flatten(1)
        total = flat.double().sum(0) if flat.is_floating_point() else flat.sum(0, dtype=torch.int64).double()
        distributed.all_reduce(total)
        centre = (total / sum(counts) / (255 if flat.dtype == torch.uint8 else 1)).float()
        super().__init__(images, num_chunks, devices, centre)
        self.counts = counts
        rank = distributed.get_rank()
        self.mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        self.shape = torch.Size([sum(counts), flat.shape[1]])
        self.squared_norms = gather(self.squared_norms)

    def over_parts(self, method: str, vectors: Tensor) -> Tensor:
        """Call a method of the parts of all processes and gather the results to [B, N], by one collective operation."""
        mine = super().over_parts(method, vectors)
        # Never a view, which autograd refuses.
        return gather(mine.T.contiguous(), self.counts).T.clone(memory_format=torch.contiguous_format)

    def of_first(self, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        distributed.broadcast(tensor, 0)
        return tensor

    @property
    def has_gram(self) -> bool:
        return False

    def combine(self, weights: Tensor) -> Tensor:
        total = super().combine(weights[:, self.mine].contiguous())
        distributed.all_reduce(total)
        return total

    def rows(self, numbers: Tensor, buffers: Buffers | None = None) -> Tensor:
        return self.rows_at(numbers, slice(0, len(numbers)), buffers)

    def rows_at(self, numbers: Tensor, kept: slice, buffers: Buffers | None = None) -> Tensor:
        """As `AnchorMatrix.rows` of numbers[kept], where all processes ask for the same numbers.

        Every process adds its own anchors to zeros, in the dtype that they are stored in.
        """
        stored = self.parts[0].images.dtype
        shape = (kept.stop - kept.start, self.shape[1])
        out = (buffers or Buffers()).get("rows", shape, torch.float32, self.device)
        step = max(1, PIECE_BYTES // (torch.empty((), dtype=stored).element_size() * self.shape[1]))
        for start in range(0, len(numbers), step):
            wanted = numbers[start : start + step]
            here = ((wanted >= self.mine.start) & (wanted < self.mine.stop)).nonzero().squeeze(1)
            part = torch.zeros(len(wanted), self.shape[1], dtype=stored, device=self.device)
            part[here] = self.stored_rows(wanted[here] - self.mine.start)
            distributed.all_reduce(part)
            first, last = max(kept.start, start), min(kept.stop, start + len(wanted))
            if first < last:
                out[first - kept.start : last - kept.start] = as_floats(part[first - start : last - start])
        return out


def gather(part: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """All-gather the parts [n_r, ...] of all processes, which may differ in length, to [sum n_r, ...].

    counts  n_r of all processes, if they are known: otherwise they are gathered first
    """
    if counts is None:
        count = torch.tensor([len(part)], device=part.device)
        found = [torch.zeros_like(count) for _ in range(distributed.get_world_size())]
        distributed.all_gather(found, count)
        counts = torch.cat(found).tolist()
    padded = part.new_zeros(max(counts), *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([rows[:count] for rows, count in zip(parts, counts, strict=True)])


def any_of(flags: Tensor) -> Tensor:
    """[n] bool: True if the flag is True in any process."""
    numbers = flags.to(torch.uint8)
    distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
    return numbers.bool()
