"""The training loop over batches, with objective, optimizer and schedule; everything else is done by callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foundations.errors import RunError
from foundations.memory import is_out_of_memory
from foundations.step import Step
from training.batch import Batch, Movement, Source, Transform, pieces, unmoved
from training.network import plain
from training.objectives import Parts, Scores
from training.schedule import Schedule
from training.synchronised import has_batch_norm
from training.weight_perturbation import as_they_are


class Batches(Protocol):
    """Global batches of one epoch, from number `start` on; their order depends only on the epoch."""

    def __len__(self) -> int: ...

    def epoch(self, number: int, start: int = 0) -> Iterable[Source]: ...


@dataclass
class Totals:
    """Sums over this process's part of an epoch, kept on the device so that no step waits for a transfer.

    sums   of "loss" and of the accuracy of each named part, each weighted by its share of a global batch
    seen   sum of these shares, by the same names
    batches   number of global batches so far
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    batches: int = 0

    def add(self, scores: Scores, share: float) -> None:
        """Add the scores of a Batch that is `share` of a global batch."""
        for name, value in {"loss": scores.loss.detach(), **scores.correct}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * share
            self.seen[name] = self.seen.get(name, 0.0) + share


@dataclass
class Progress:
    """The state of training after an optimizer step, as passed to callbacks.

    step     number of steps done so far, and the epoch of the last one
    lr       learning rate of the last step
    totals   sums of its epoch so far
    """

    step: Step
    lr: float
    is_epoch_end: bool
    is_end: bool
    totals: Totals


Callback = Callable[[Progress], None]
Perturbation = Callable[[nn.Module, Parts, Any, float], AbstractContextManager[Scores | None]]


@dataclass
class Trainer:
    """Model, optimizer and data of one training run, with its current position.

    model          wrapped in DistributedDataParallel if there are several processes
    world_size     number of processes; gradients are averaged over them, so a loss is weighted by share * world_size
    accumulation   number of parts of a batch, for gradient accumulation; one optimizer step is a whole batch
    move, change    augmentation (training/batch.py)
    perturbation   perturbation of the weights while the loss of a batch is computed
    clip_grad      largest l2 norm of the gradient; 0 for no limit
    scaler         loss scaler for fp16
    notice         prints a message for the user
    iteration, totals   optimizer steps done, and sums of the epoch so far, from which a resumed run continues
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    objective: Parts
    schedule: Schedule
    peak_lr: float
    world_size: int = 1
    accumulation: int = 1
    move: Movement = unmoved
    change: Transform = unmoved
    perturbation: Perturbation = as_they_are
    clip_grad: float = 0.0
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cuda", enabled=False))
    callbacks: Sequence[Callback] = ()
    notice: Callable[[str], None] = print
    iteration: int = 0
    totals: Totals = field(default_factory=Totals)

    def run(self) -> None:
        """Train up to the last step of the schedule. With zero steps the weights stay bit-identical."""
        self.model.train()
        while self.iteration < self.schedule.total:
            epoch, start = divmod(self.iteration, len(self.batches))
            if start == 0:
                self.totals = Totals()
            for source in self.batches.epoch(epoch, start):
                progress = self._step(source, epoch)
                for callback in self.callbacks:
                    callback(progress)
                if progress.is_end:
                    break

    def _step(self, source: Source, epoch: int) -> Progress:
        """Take one optimizer step, on one global batch."""
        lr = self.peak_lr * self.schedule.factor(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        while not self._take_gradient(source, Step(self.iteration, epoch)):
            self._use_smaller_parts(len(source.labels))
        self._update()
        self.totals.batches += 1
        self.iteration += 1
        is_end = self.iteration == self.schedule.total
        is_epoch_end = self.iteration % len(self.batches) == 0
        return Progress(Step(self.iteration, epoch), lr, is_epoch_end, is_end, self.totals)

    def _take_gradient(self, source: Source, step: Step) -> bool:
        """Accumulate the gradient of one global batch, part by part; returns False if GPU memory did not suffice."""
        before = Totals(dict(self.totals.sums), dict(self.totals.seen), self.totals.batches)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            batches = list(pieces(source, self.accumulation, self.move, self.change, self.iteration))
            for batch in batches:
                with nullcontext() if batch is batches[-1] else self._without_communication():
                    self._add_gradient(batch, step)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.totals = before
            return False
        return True

    def _use_smaller_parts(self, size: int) -> None:
        """Double the number of parts after a batch of `size` images did not fit into memory.

        Raises RunError if a part is a single image already, and where training depends on the parts, which the run's
        hash knows as --accumulation: batch normalisation takes the statistics of each, and adversarial weight
        perturbation its gradient. Also with several processes: the others may be waiting in a collective operation of
        the same batch, so that it cannot be repeated.
        """
        advice = f"out of memory; use --accumulation={2 * self.accumulation} or a smaller --batch_size"
        depends = has_batch_norm(self.model) or self.perturbation is not as_they_are
        if self.world_size > 1 or self.accumulation >= size or depends:
            raise RunError(advice)
        self.accumulation *= 2
        torch.cuda.empty_cache()
        self.notice(f"{advice}: going on with parts of {-(-size // self.accumulation)} images")

    def _add_gradient(self, batch: Batch, step: Step) -> None:
        inner = plain(self.model)  # passes of attacks and perturbations do not communicate
        parts = self.objective.make(inner, batch, step)
        with self.perturbation(inner, self.objective, parts, batch.share) as unperturbed:
            scores = self.objective.score(self.model, parts)
            self.scaler.scale(scores.loss * (batch.share * self.world_size)).backward()
        self.totals.add(unperturbed or scores, batch.share)

    def _update(self) -> None:
        if self.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _without_communication(self) -> AbstractContextManager[None]:
        return self.model.no_sync() if isinstance(self.model, nn.parallel.DistributedDataParallel) else nullcontext()


def every_epoch(callback: Callback) -> Callback:
    """A callback that is called only at the end of each epoch and at the end of training."""
    return lambda progress: callback(progress) if progress.is_epoch_end or progress.is_end else None
