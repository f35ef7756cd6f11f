"""Anchors distributed over processes that work on different examples, as in training.

Invariant: inside a session all processes take part in the same rounds. A process that needs products or anchors starts
a round: the questions of all processes are gathered, all of them answer all questions together, as in
DistributedAnchorMatrix, and each process keeps the answers to its own. A process that has no question left stays in the
session and answers those of the others. So processes may ask different numbers of questions, and they may come to
different branches of a projection; each one projects only its own examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

from foundations.arithmetic import full_precision
from foundations.errors import RunError
from foundations.memory import is_out_of_memory
from threat_specification.projected_displacement.buffers import Buffers
from threat_specification.projected_displacement.distributed_matrix import DistributedAnchorMatrix, gather

QUESTIONS = ("", "products", "exact_products", "square_products", "combine", "rows")  # "": none


class ApartAnchorMatrix(DistributedAnchorMatrix):
    """`DistributedAnchorMatrix` for processes that work on different examples, inside a `session`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sessions = 0

    @contextmanager
    def session(self) -> Iterator[None]:
        """A block that all processes enter and leave together; a session inside a session changes nothing.

        After an error the other processes are not answered: their watchdog or launcher ends them.
        """
        self._sessions += 1
        try:
            yield
            while self._sessions == 1 and self._round()[0]:
                pass
        finally:
            self._sessions -= 1

    def over_parts(self, method: str, vectors: Tensor) -> Tensor:
        """As `AnchorMatrix.over_parts`, for the vectors [b, D] of this process: [b, N]."""
        dtype = torch.float64 if method == "exact_products" else vectors.dtype
        return self._ask(method, vectors) if len(vectors) else vectors.new_zeros(0, self.shape[0], dtype=dtype)

    def of_first(self, tensor: Tensor) -> Tensor:
        return tensor

    def combine(self, weights: Tensor) -> Tensor:
        return self._ask("combine", weights) if len(weights) else weights.new_zeros(0, self.shape[1])

    def rows(self, numbers: Tensor, buffers: Buffers | None = None) -> Tensor:
        if not len(numbers):
            return torch.zeros(0, self.shape[1], device=self.device)
        return self._ask("rows", numbers, buffers)

    def _ask(self, question: str, mine: Tensor, buffers: Buffers | None = None) -> Tensor:
        if not self._sessions:
            raise RuntimeError("anchors of processes that work apart: use them inside `with threat.session():`")
        answer = self._round(question, mine, buffers)[1]
        assert answer is not None
        return answer

    def _round(
        self, question: str = "", mine: Tensor | None = None, buffers: Buffers | None = None
    ) -> tuple[bool, Tensor | None]:
        """Answer one question of each process; returns whether any process had one, and the answer to this one's."""
        size = 0 if mine is None else len(mine)
        told = gather(torch.tensor([[QUESTIONS.index(question), size]]), [1] * distributed.get_world_size()).tolist()
        answer = None
        try:
            with torch.no_grad(), full_precision(self.device.type):
                for number, name in enumerate(QUESTIONS):
                    counts = [count if asked == number else 0 for asked, count in told]
                    if not any(counts):
                        continue
                    everyone = gather(self._nothing(name) if question != name or mine is None else mine, counts)
                    start = sum(counts[: distributed.get_rank()])
                    kept = slice(start, start + counts[distributed.get_rank()])
                    found = self._answer(name, everyone, kept, buffers)
                    answer = found if question == name else answer
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # The others are in the middle of this round, and would not repeat it.
            raise RunError(
                "out of memory while processes exchanged products with anchors; use more processes"
            ) from error
        return any(asked for asked, _ in told), answer

    def _nothing(self, question: str) -> Tensor:
        """The empty part of a process that does not ask this question."""
        if question == "rows":
            return torch.zeros(0, dtype=torch.int64, device=self.device)
        return torch.zeros(0, self.shape[0 if question == "combine" else 1], device=self.device)

    def _answer(self, question: str, everyone: Tensor, kept: slice, buffers: Buffers | None) -> Tensor:
        """Answer a question of all processes, and keep the answers at these places."""
        if question == "rows":
            return self.rows_at(everyone, kept, buffers)
        found = super().combine(everyone) if question == "combine" else super().over_parts(question, everyone)
        return found[kept].clone()  # autograd takes no view, and the answers to others are not kept in memory
