"""The training loop: batches, objective, optimizer, schedule; everything else is a callback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from foundations.errors import RunError
from foundations.step import Step
from training.objectives import Batch, Moment, Objective
from training.schedule import Schedule


class Batches(Protocol):
    """Batches of one epoch at a time."""

    def __len__(self) -> int: ...

    def epoch(self, number: int) -> Iterable[Batch]: ...


@dataclass
class Totals:
    """Sums over the global examples of an epoch, kept on the device so that no step waits for them."""

    loss: Tensor
    correct: Tensor
    batches: int = 0


@dataclass
class Progress:
    """Where training is; what callbacks see."""

    step: Step
    epoch: int
    lr: float
    is_epoch_end: bool
    is_end: bool
    totals: Totals


Callback = Callable[[Progress], None]


@dataclass
class Trainer:
    """Model, optimizer and data of one training run.

    model       wrapped in DistributedDataParallel where there are several processes
    world_size  their number; gradients are averaged over it, so that a loss is weighted by share * world_size
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    objective: Objective
    schedule: Schedule
    peak_lr: float
    world_size: int = 1
    callbacks: Sequence[Callback] = field(default_factory=tuple)

    def run(self) -> None:
        """Train up to the schedule's last step. Zero steps leave the weights bit-equal."""
        total, iteration, epoch = self.schedule.total.iteration, 0, 0
        self.model.train()
        while iteration < total:
            totals = self._no_totals()
            for i, batch in enumerate(self.batches.epoch(epoch)):
                lr = self.peak_lr * self.schedule.factor(iteration)
                self._step(batch, Moment(iteration, epoch), lr, totals)
                iteration += 1
                progress = Progress(Step(iteration), epoch, lr, i + 1 == len(self.batches), iteration == total, totals)
                for callback in self.callbacks:
                    callback(progress)
                if progress.is_end:
                    break
            epoch += 1

    def _step(self, batch: Batch, moment: Moment, lr: float, totals: Totals) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss, logits = self.objective(self.model, batch, moment)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * (batch.share * self.world_size)).backward()
        self.optimizer.step()
        totals.loss += loss.detach() * batch.share
        totals.correct += (logits.detach().argmax(1) == batch.labels).float().mean() * batch.share
        totals.batches += 1

    def _no_totals(self) -> Totals:
        device = next(self.model.parameters()).device
        return Totals(torch.zeros((), device=device), torch.zeros((), device=device))


def every_epoch(callback: Callback) -> Callback:
    """Call it at the end of each epoch, and of training."""
    return lambda progress: callback(progress) if progress.is_epoch_end or progress.is_end else None


def stop_on_nonfinite_loss(progress: Progress) -> None:
    """A callback: stop with a message once the loss is NaN or infinite."""
    if not bool(progress.totals.loss.isfinite()):
        raise RunError(
            f"the loss became {float(progress.totals.loss)} in epoch {progress.epoch + 1}; try a smaller --lr"
        )
