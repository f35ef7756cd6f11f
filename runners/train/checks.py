"""Refusals and warnings of the train runner before it trains."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch

from datasets.loader import ShuffledBatches
from foundations.environment import Environment
from foundations.errors import UsageError
from foundations.hparams import TrainingHparams
from models.normalize import Classifier
from training.schedule import Schedule
from training.synchronised import has_batch_norm


def check_flags(training: TrainingHparams, environment: Environment) -> None:
    """Raise UsageError for flags that these processes or this device cannot follow."""
    if training.batch_size < environment.world_size:
        raise UsageError(
            f"--batch_size: expected at least one example for each of {environment.world_size} processes, "
            f"got {training.batch_size}"
        )
    if training.precision == "fp16" and environment.device.type != "cuda":
        raise UsageError("--precision=fp16: expected a GPU; use --precision=bf16 here")


def check_parts(
    network: Classifier,
    image: torch.Tensor,
    size: int,
    accumulation: int,
    environment: Environment,
    together: str = "",
) -> None:
    """Raise UsageError if a batch is too small for its parts, which processes and accumulation make.

    image      [1, C, H, W], one of those of training
    size       examples of a batch
    together   a flag with which processes work on every part together, if there is one
    """
    parts = environment.world_size * accumulation
    if size < parts and environment.world_size > 1 and together:
        raise UsageError(
            f"{together}: expected an example in every part of a batch, got {size} examples for {parts} parts "
            "(processes times --accumulation); use a smaller --accumulation"
        )
    if size >= 2 * parts or not has_batch_norm(network):
        return
    if size < parts and environment.world_size > 1:
        raise UsageError(
            f"batch normalisation over all processes needs an example in every part of a batch, got {size} for "
            f"{parts} parts (processes times --accumulation); use a larger --batch_size"
        )
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            copy.deepcopy(network).train()(image)
    except ValueError as error:
        raise UsageError(
            f"batch normalisation needs two examples in every part of a batch; --batch_size={size} makes one in "
            f"{parts} parts (processes times --accumulation)"
        ) from error


def notices(training: TrainingHparams, schedule: Schedule, batches: ShuffledBatches) -> Iterator[str]:
    """Sentences on what was asked for and does not come about in so short a training, or with so few images."""
    whole = training.adv_train_start_epoch + training.adv_train_growth_epochs + 1
    epochs = math.ceil(schedule.total / len(batches))
    if training.has_adversary and whole > epochs > 0:
        yield (
            f"warning: adversaries reach their full size in epoch {whole}, training ends in epoch {epochs}; "
            "lower --adv_train_start_epoch or --adv_train_growth_epochs"
        )
    if schedule.warmup >= schedule.total > 0:
        yield (
            f"warning: the learning rate still rises when training ends, at step {schedule.total} of a warm-up of "
            f"{schedule.warmup}; lower --warmup_steps"
        )
    late = [step for step in schedule.milestones if step >= schedule.total > 0]
    if late and schedule.shape == "milestones":
        yield f"warning: training ends at step {schedule.total}, before {len(late)} of its --milestone_steps"
    if batches.batch_size < training.batch_size:
        scaled = f"; the learning rate {training.peak_lr:g} is scaled for the former" if training.lr_per else ""
        yield (
            f"note: --batch_size={training.batch_size}, but batches have all {batches.batch_size} training "
            f"images{scaled}"
        )
