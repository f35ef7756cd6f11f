"""train: train a model."""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from torch import nn

from datasets.loader import ShuffledBatches
from foundations.desc import derive_seed
from foundations.errors import UsageError
from foundations.files import write_bytes, write_text
from foundations.modes import evaluation_mode
from foundations.step import Step
from runners.base import Runner
from runners.inputs import read_data, read_initial_model, read_threat
from runners.objectives import objective_from
from testing.evaluations import CleanEvaluation
from testing.shards import evaluate_in_shards
from training.loop import Progress, Trainer, every_epoch, stop_on_nonfinite_loss
from training.schedule import Schedule

TEST_SHARD = 500  # images scored together during training


class Train(Runner):
    """Writes model.safetensors, metrics.jsonl (an epoch a line) and timing.jsonl."""

    def prepare(self) -> None:
        training, environment = self.desc.training, self.environment
        if training.batch_size < environment.world_size:
            raise UsageError(
                f"--batch_size: expected at least one example for each of {environment.world_size} processes, "
                f"got {training.batch_size}"
            )
        self.data = read_data(self.desc, environment)
        self.batches = ShuffledBatches(
            self.data.train.to(environment.device),
            min(training.batch_size, len(self.data.train)),
            self._seed("order"),
            environment.rank,
            environment.world_size,
            num_workers=environment.num_workers,
        )
        self.test = self.data.test.to(environment.device)
        needs_threat = bool(self.desc.needed_runs())
        if needs_threat and self.desc.anchors.threat.shard_anchors and environment.world_size > 1:
            raise UsageError("--shard_anchors: processes train on different examples; only test can share anchors out")
        self.threat = read_threat(self.desc.anchors, environment) if needs_threat else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed("weights"))
            self.model: nn.Module = read_initial_model(self.desc, environment, self.data.info)
        self.metrics: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        training = self.desc.training
        schedule = self._schedule()
        self.bar = self.environment.progress(None, "training", total=schedule.total.iteration, unit="step")
        self.epoch_started = time.monotonic()
        trainer = Trainer(
            model=self._distributed(self.model),
            optimizer=torch.optim.SGD(
                self.model.parameters(),
                lr=training.lr,
                momentum=training.momentum,
                nesterov=training.nesterov,
                weight_decay=training.weight_decay,
            ),
            batches=self.batches,
            objective=objective_from(self.desc, self.data.info.num_classes, self.threat, self._seed("objective")),
            schedule=schedule,
            peak_lr=training.lr,
            world_size=self.environment.world_size,
            callbacks=(self._show, every_epoch(stop_on_nonfinite_loss), every_epoch(self._record)),
        )
        trainer.run()
        self.bar.close()
        test_accuracy = self.metrics[-1]["test_accuracy"] if self.metrics else self._test_accuracy()
        if self.environment.is_primary:
            from safetensors.torch import save

            write_bytes(self.directory / "model.safetensors", save(_contiguous(self.model)))
        return {
            "steps": schedule.total.iteration,
            "final": {
                "train_loss": self.metrics[-1]["train_loss"] if self.metrics else None,
                "test_accuracy": test_accuracy,
            },
        }

    def _seed(self, purpose: str) -> int:
        return derive_seed(self.desc.seed, self.desc.replicate, purpose)

    def _schedule(self) -> Schedule:
        training, epoch = self.desc.training, len(self.batches)
        drops = tuple(Step.parse(text, epoch) for text in training.milestone_steps.split(",") if text)
        return Schedule(
            total=Step.parse(training.training_steps, epoch),
            warmup=Step.parse(training.warmup_steps, epoch),
            milestones=drops,
            gamma=training.gamma,
            shape=training.lr_schedule,
        )

    def _distributed(self, model: nn.Module) -> nn.Module:
        if self.environment.world_size == 1:
            return model
        device = self.environment.device
        return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def _show(self, progress: Progress) -> None:
        self.bar.update()

    def _record(self, progress: Progress) -> None:
        """A line of metrics, and of timing, for the epoch that ended."""
        totals = progress.totals
        sums = torch.stack([totals.loss, totals.correct]).double().cpu().numpy()
        loss, correct = self.environment.merge(sums) / totals.batches
        row = {
            "epoch": progress.epoch + 1,
            "step": progress.step.iteration,
            "lr": progress.lr,
            "train_loss": float(loss),
            "train_accuracy": float(correct),
            "test_accuracy": self._test_accuracy(),
        }
        self.metrics.append(row)
        self.bar.set_postfix(loss=f"{loss:.4f}", test=f"{row['test_accuracy']:.4f}")
        seconds = time.monotonic() - self.epoch_started
        self.epoch_started = time.monotonic()
        rate = totals.batches * self.batches.batch_size / seconds
        self.timing.append({"epoch": row["epoch"], "seconds": round(seconds, 4), "examples_per_second": round(rate, 1)})
        if self.environment.is_primary:
            for name, rows in (("metrics.jsonl", self.metrics), ("timing.jsonl", self.timing)):
                write_text(self.directory / name, "".join(json.dumps(row) + "\n" for row in rows))

    def _test_accuracy(self) -> float:
        with evaluation_mode(self.model):
            arrays = evaluate_in_shards(
                self.test.pixels,
                self.test.labels,
                torch.arange(len(self.test), device=self.environment.device),
                TEST_SHARD,
                [CleanEvaluation(self.model)],
                self.environment,
                show=False,
            )
        return float(arrays["standard_correct"].mean())


def _contiguous(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
