"""Checkpoints of a training run: when they are written, what they contain, and how a run continues from one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import nn

from foundations.environment import Environment
from foundations.hparams import TrainingHparams
from foundations.run_directory import RunDirectory
from runners.train.history import History
from training.checkpoints import Snapshot, Snapshots, Weights, weights_of
from training.loop import Progress, Totals, Trainer
from training.random_states import gather_states, restore_states

NO_CHECKPOINT = -1  # in place of the step of a checkpoint


@dataclass
class BestWeights:
    """The best weights so far; epoch 0 if there are none yet."""

    accuracy: float = -1.0
    epoch: int = 0
    weights: Weights = field(default_factory=dict)

    def take(self, accuracy: float, epoch: int, weights: Weights) -> None:
        self.accuracy, self.epoch, self.weights = accuracy, epoch, weights


class Resume:
    """Checkpointing of everything that the rest of a run depends on.

    networks   "model"; "average" if there is a moving average; "last_<adversary>" for stored perturbations
    """

    networks: dict[str, nn.Module]

    def __init__(
        self,
        directory: RunDirectory,
        environment: Environment,
        training: TrainingHparams,
        trainer: Trainer,
        history: History,
        best: BestWeights,
    ) -> None:
        self.environment, self.minutes = environment, training.checkpoint_minutes
        self.trainer, self.history, self.best = trainer, history, best
        self.directory = directory
        self.snapshots = Snapshots(directory / "checkpoints", training.keep_checkpoints)
        self.saved = time.monotonic()

    def is_due(self) -> bool:
        """Check whether --checkpoint_minutes have passed, by the clock of the primary; False on all others."""
        return self.environment.is_primary and 0 < 60 * self.minutes < time.monotonic() - self.saved

    def save(self, progress: Progress) -> None:
        """Write a checkpoint. A collective operation."""
        trainer = self.trainer
        random, totals = gather_states(self.environment), self._stacked(progress.totals)
        self.saved = time.monotonic()
        if not self.environment.is_primary:
            return
        self.directory.check()
        state = {
            "iteration": progress.step.iteration,
            "position": {"epoch": progress.step.epoch, "batches": progress.totals.batches},
            "lr": progress.lr,
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.scaler.state_dict(),
            "random": random,
            "totals": totals,
            "rows": self.history.rows,
            "timing": self.history.timing,
            "best": {"accuracy": self.best.accuracy, "epoch": self.best.epoch},
        }
        weights = {name: weights_of(network) for name, network in self.networks.items()}
        if self.best.epoch:
            weights["best"] = self.best.weights
        self.snapshots.write(progress.step.iteration, Snapshot(weights, state))

    def restore(self) -> None:
        """Continue from the newest checkpoint that the primary can read, if there is one. A collective operation."""
        snapshot = self._newest()
        if snapshot is None:
            return
        state, trainer = snapshot.state, self.trainer
        for name, network in self.networks.items():
            network.load_state_dict(snapshot.weights[name])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.scaler.load_state_dict(state["scaler"])
        trainer.iteration = state["iteration"]
        trainer.totals = self._unstacked(state["totals"])
        self.history.rows, self.history.timing = state["rows"], state["timing"]
        self.best.take(state["best"]["accuracy"], state["best"]["epoch"], snapshot.weights.get("best", {}))
        restore_states(state["random"], self.environment)
        self.environment.log(f"going on from step {trainer.iteration} of {trainer.schedule.total}")

    def _newest(self) -> Snapshot | None:
        """The checkpoint that the primary chooses; raises RunError where another process cannot read that one."""
        snapshot, damaged = self.snapshots.newest() if self.environment.is_primary else (None, [])
        for path in damaged:
            self.environment.log(f"left out: the checkpoint {path.name} cannot be read")
        step = self.environment.broadcast(snapshot.state["iteration"] if snapshot else NO_CHECKPOINT)
        if step == NO_CHECKPOINT or snapshot:
            return snapshot
        return self.snapshots.read(step)

    def _stacked(self, totals: Totals) -> dict[str, Any]:
        """The sums of every process, [W, 2, n]."""
        names = sorted(totals.sums)
        values = [[float(totals.sums[name]) for name in names], [totals.seen[name] for name in names]]
        rows = self.environment.all_gather(numpy.array(values, numpy.float64))
        return {"names": names, "rows": torch.from_numpy(rows), "batches": totals.batches}

    def _unstacked(self, stored: dict[str, Any]) -> Totals:
        """The sums of this process; if the number of processes has changed, the first one takes all sums."""
        rows, device = stored["rows"], self.environment.device
        if len(rows) != self.environment.world_size:
            rows = torch.cat([rows.sum(0, keepdim=True), rows.new_zeros(self.environment.world_size, *rows.shape[1:])])
        sums, seen = rows[self.environment.rank]
        return Totals(
            {name: value.float().to(device) for name, value in zip(stored["names"], sums, strict=True)},
            dict(zip(stored["names"], seen.tolist(), strict=True)),
            stored["batches"],
        )
