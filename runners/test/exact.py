"""The evaluation of `test --exact_eval`: a pass of its own after the others, its fields of result.json, and evidence.

It has small shards, since an image may take a minute, and it takes what attacks broke as broken.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch

from datasets.base import Examples
from foundations.environment import Environment
from foundations.files import write_bytes
from foundations.run_directory import RunDirectory
from testing.evaluations import AttackEvaluation
from testing.exact import CLOCK, UNDECIDED, WRONG, ExactEvaluation, Known
from testing.shards import ShardStore, evaluate_in_shards

SHARD = 5  # images
FOLDER = "exact"  # in the folder of unfinished shards
POINTS = "exact.safetensors"

Arrays = dict[str, numpy.ndarray]


def evaluate(
    evaluation: ExactEvaluation,
    arrays: Arrays,
    images: Examples,
    index: torch.Tensor,
    environment: Environment,
    folder: RunDirectory,
) -> Arrays:
    """The exact answers for the rows `index`, given the arrays of the attacks before."""
    broken, losses = arrays["N_adv_broken_by"] > 0, arrays["N_adv_loss"]
    known = {row: Known(bool(broken[k]), float(losses[k])) for k, row in enumerate(index.tolist())}
    evaluation = replace(evaluation, known=known)
    store = ShardStore(folder / "shards" / FOLDER, numpy.inf)
    found = evaluate_in_shards(
        images.pixels, images.labels, index.to(environment.device), SHARD, [evaluation], environment, store
    )
    if environment.is_primary:
        _write_points(folder / POINTS, found, index, store)
    return found


def _write_points(path: Path, found: Arrays, index: torch.Tensor, store: ShardStore) -> None:
    """Save the misclassified images that the program found, where attacks had found none."""
    from safetensors.numpy import save

    rows = numpy.flatnonzero(found["exact_broken"] & (found["exact_by"] > 1))
    if len(rows):
        images = [store.pictures(row // SHARD)["exact_image"][row % SHARD] for row in rows.tolist()]
        write_bytes(path, save({"index": index.numpy()[rows], "image": numpy.stack(images)}))


def metrics(attacked: AttackEvaluation, found: Arrays) -> dict[str, Any]:
    """The fields of result.json: what is robust, what may be, and by what it was decided."""
    robust, broken, by = found["exact_robust"], found["exact_broken"], found["exact_by"]
    return {
        "accuracy": float(robust.mean()),
        "upper": float(1 - broken.mean()),
        "undecided": int((by == UNDECIDED).sum()),
        "broken": int(broken.sum()),
        "missed_by_attacks": int((broken & (by > 1)).sum()),
        "misclassified": int((by == WRONG).sum()),
        "threshold": attacked.headline.threshold,
        "norm": attacked.threat.name,
        "radius": attacked.headline.radius,
        "seconds_per_example": float(found[CLOCK].mean()),
    }
