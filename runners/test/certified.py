"""The evaluation of `test --certify`: a pass of its own after the others, and its fields of result.json.

An example that is certified but broken by an attack, or by the exact answers, ends the run: one of the two is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch

from datasets.base import Examples
from foundations.environment import Environment
from foundations.errors import RunError
from foundations.run_directory import RunDirectory
from testing.certificates import CLOCK, CertificateEvaluation
from testing.evaluations import AttackEvaluation
from testing.shards import ShardStore, evaluate_in_shards
from threat_specification.attacks.search import Cell

FOLDER = "certificates"  # in the folder of unfinished shards

Arrays = dict[str, numpy.ndarray]


def evaluate(
    evaluation: CertificateEvaluation,
    images: Examples,
    index: torch.Tensor,
    shard_size: int,
    environment: Environment,
    folder: RunDirectory,
    in_lockstep: bool,
) -> Arrays:
    """The certificates for the rows `index`."""
    return evaluate_in_shards(
        images.pixels,
        images.labels,
        index.to(environment.device),
        shard_size,
        [evaluation],
        environment,
        ShardStore(folder / "shards" / FOLDER, 0),
        in_lockstep=in_lockstep,
    )


def metrics(attacked: AttackEvaluation, found: Arrays, trained: bool | None) -> dict[str, Any]:
    """The fields of result.json.

    trained   whether the model's training was certified, None if unknown: of another one, few certificates say nothing
    """
    return {
        "accuracy": float(found["certified_robust"].mean()),
        "box_accuracy": float(found["certified_box"].mean()),
        "certified_training": trained,
        "threshold": attacked.headline.threshold,
        "norm": attacked.threat.name,
        "radius": attacked.headline.radius,
        "seconds_per_example": float(found[CLOCK].mean()),
    }


def refuse_contradictions(arrays: Arrays, evaluations: Mapping[str, Any], index: numpy.ndarray) -> None:
    """Raise RunError that names the first example which is certified in a set where it was broken.

    arrays   those of all evaluations, certificates and exact answers
    index    [n] rows in the data set
    """
    for column, broken, by in _broken(arrays, evaluations):
        wrong = arrays[column] & broken
        if wrong.any():
            first, count = int(index[wrong][0]), int(wrong.sum())
            raise RunError(
                f"certified robust but broken by {by}: image {first} is the first of {count}; a bound or an attack is "
                "wrong; please report it"
            )


def _broken(arrays: Arrays, evaluations: Mapping[str, Any]) -> Iterator[tuple[str, numpy.ndarray, str]]:
    """The columns of certificates, each with what was broken inside its set, and by what."""
    attacked = evaluations["N_adv"]
    for column in ("certified_robust", "certified_box"):
        yield column, ~arrays["N_adv_correct"], "an attack"
        if "exact_broken" in arrays:
            yield column, arrays["exact_broken"], "the exact answers"
    ball, cells = evaluations.get("adv"), attacked.cells
    alone = Cell(math.inf, attacked.headline.radius)
    if alone in cells:
        yield "certified_box", ~arrays["N_adv_cells"][:, cells.index(alone)], "an attack within the radius alone"
    if ball is not None and ball.threat.name == "Linf" and ball.headline.radius <= alone.radius:
        yield "certified_box", ~arrays["adv_correct"], "the isotropic attack"
