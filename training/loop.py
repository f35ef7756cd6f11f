"""The training loop: batches, objective, optimizer, schedule; everything else is a callback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foundations.errors import RunError
from foundations.step import Step
from training.batch import Batch, Movement, Source, Transform, pieces, unmoved
from training.network import plain
from training.objectives import Parts, Scores
from training.schedule import Schedule
from training.weight_perturbation import as_they_are


class Batches(Protocol):
    """Global batches of one epoch at a time, from one of them on; an order that depends on the epoch alone."""

    def __len__(self) -> int: ...

    def epoch(self, number: int, start: int = 0) -> Iterable[Source]: ...


@dataclass
class Totals:
    """Sums over this process's part of an epoch, kept on the device so that no step waits for them.

    sums   "loss", and the fraction right of each named part
    seen   share of the global batches in which there was such a part
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    batches: int = 0

    def add(self, scores: Scores, share: float) -> None:
        """The scores of a `share` of a global batch."""
        for name, value in {"loss": scores.loss.detach(), **scores.correct}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * share
            self.seen[name] = self.seen.get(name, 0.0) + share


@dataclass
class Progress:
    """Where training is; what callbacks see."""

    step: Step
    lr: float
    is_epoch_end: bool
    is_end: bool
    totals: Totals


Callback = Callable[[Progress], None]
Perturbation = Callable[[nn.Module, Parts, Any], AbstractContextManager[None]]


@dataclass
class Trainer:
    """Model, optimizer and data of one training run, and how far it is.

    model          wrapped in DistributedDataParallel where there are several processes
    world_size     their number; gradients are averaged over it, so that a loss is weighted by share * world_size
    accumulation   parts that a batch is worked through in; a step is a whole batch
    move, erase    augmentation (training/batch.py)
    perturbation   of the weights, while a batch is scored
    clip_grad      largest l2 norm of the gradient, 0 for any
    scaler         of the loss, for fp16
    notice         tells people something
    iteration, totals   optimizer steps done, and sums of the epoch so far: where a resumed run goes on
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
    erase: Transform = unmoved
    perturbation: Perturbation = as_they_are
    clip_grad: float = 0.0
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cuda", enabled=False))
    callbacks: Sequence[Callback] = ()
    notice: Callable[[str], None] = print
    iteration: int = 0
    totals: Totals = field(default_factory=Totals)

    def run(self) -> None:
        """Train up to the schedule's last step. Zero steps leave the weights bit-equal."""
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
        """One optimizer step, on one global batch."""
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
        """The gradient of one global batch, part by part; False where a GPU's memory did not suffice."""
        before = Totals(dict(self.totals.sums), dict(self.totals.seen), self.totals.batches)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            batches = list(pieces(source, self.accumulation, self.move, self.erase, self.iteration))
            for batch in batches:
                with nullcontext() if batch is batches[-1] else self._without_communication():
                    self._add_gradient(batch, step)
        except torch.OutOfMemoryError:
            self.totals = before
            return False
        return True

    def _use_smaller_parts(self, size: int) -> None:
        """After a batch that did not fit. Other processes may be waiting inside theirs: there it ends the run."""
        advice = f"out of memory; use --accumulation={2 * self.accumulation} or a smaller --batch_size"
        if self.world_size > 1 or self.accumulation >= size:
            raise RunError(advice)
        self.accumulation *= 2
        torch.cuda.empty_cache()
        self.notice(f"{advice}: going on with parts of {-(-size // self.accumulation)} images")

    def _add_gradient(self, batch: Batch, step: Step) -> None:
        inner = plain(self.model)  # attacks are no part of the step
        parts = self.objective.make(inner, batch, step)
        with self.perturbation(inner, self.objective, parts):
            scores = self.objective.score(self.model, parts)
            self.scaler.scale(scores.loss * (batch.share * self.world_size)).backward()
        self.totals.add(scores, batch.share)

    def _update(self) -> None:
        if self.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _without_communication(self) -> AbstractContextManager[None]:
        return self.model.no_sync() if isinstance(self.model, nn.parallel.DistributedDataParallel) else nullcontext()


def every_epoch(callback: Callback) -> Callback:
    """Call it at the end of each epoch, and of training."""
    return lambda progress: callback(progress) if progress.is_epoch_end or progress.is_end else None
