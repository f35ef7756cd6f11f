"""The evaluation of `test --safe_moves`: how it is built, its fields of result.json, and its gallery."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from runners.plots import Column, amplified, write_strip
from runners.test.metrics import robust_after
from runners.test.summary import MOVES
from testing.evaluations import AttackEvaluation
from testing.moves import MovesEvaluation, with_moves
from threat_specification.attacks.search import Cell

Arrays = dict[str, numpy.ndarray]

NOISE_ALONE = "noise_alone"  # the last member: what the evaluation without safe changes broke in the smaller set
AT_THRESHOLD = 0.999  # share of the threshold from which the threat of a point counts as at it
ROWS = 12  # images of the gallery
SHOWN = 3  # safe changes named for each of them


def evaluation(plain: AttackEvaluation, changes: Sequence[tuple[str, int]]) -> MovesEvaluation:
    """The evaluation in the set of mixtures, with the bounds and attacks of the one without safe changes.

    Its cells: with both bounds, without noise, without the threat, and without either.
    """
    threshold, radius = plain.headline.threshold, plain.headline.radius
    cells = [Cell(threshold, 0.0), Cell(math.inf, radius), Cell(math.inf, 0.0)]
    return with_moves(plain, changes, cells, MOVES)


def add_noise_alone(arrays: Arrays, plain: AttackEvaluation, mixed: MovesEvaluation) -> None:
    """Count what was broken without safe changes as broken with them too, in `arrays`: noise alone is in the set."""
    of = lambda name: f"{MOVES}_{name}"  # noqa: E731
    without = dict(zip(plain.cells, arrays["N_adv_cells"].T, strict=True))
    cells = arrays[of("cells")] = arrays[of("cells")].copy()
    for place, cell in enumerate(mixed.cells):
        if cell in without:
            cells[:, place] &= without[cell]
    new = arrays[of("correct")] & ~arrays["N_adv_correct"]
    arrays[of("correct")] = arrays[of("correct")] & ~new
    arrays[of("rounded")] = numpy.where(new, arrays["N_adv_rounded"], arrays[of("rounded")])
    arrays[of("broken_by")] = numpy.where(new, len(mixed.attacks) + 1, arrays[of("broken_by")])


def metrics(mixed: MovesEvaluation, arrays: Arrays, alone: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """The fields of result.json.

    alone     those of the evaluation without safe changes
    changes   names of the safe changes, with their severities
    """
    of = {name.removeprefix(f"{MOVES}_"): values for name, values in arrays.items() if name.startswith(f"{MOVES}_")}
    threshold, radius = mixed.headline.threshold, mixed.headline.radius
    robust = dict(zip(mixed.cells, of["cells"].mean(0).tolist(), strict=True))
    ball = next(row for row in alone["references"] if row["threshold"] is None and row["radius"] == radius)
    found = (of["broken_by"] > 0) & (of["broken_by"] <= len(mixed.attacks))
    at_threshold = of["threat"][found] >= AT_THRESHOLD * threshold
    return {
        "accuracy": float(of["correct"].mean()),
        "name": f"{alone['name']},moves{len(changes)}",
        "threshold": threshold,
        "norm": mixed.threat.name,
        **({"form": alone["form"]} if "form" in alone else {}),
        "radius": radius,
        "attacks": robust_after(of["broken_by"], [*mixed.attacks, NOISE_ALONE]),
        "single": dict(zip(changes, of["single"].mean(0).tolist(), strict=True)),
        "single_mean": float(of["single"].mean()),
        "single_worst": float(of["single"].all(1).mean()),
        "mixture_alone": robust[Cell(threshold, 0.0)],
        "noise_alone": alone["accuracy"],
        "ball": ball["accuracy"],
        "without_threat": robust[Cell(math.inf, radius)],
        "mixture_without_threat": robust[Cell(math.inf, 0.0)],
        "binding": float(at_threshold.mean()) if found.any() else 0.0,
        "weights": dict(zip(changes, of["weights"][found].mean(0).tolist() if found.any() else [], strict=False)),
        "accuracy_rounded": 1 - float((of["rounded"] | (of["broken_by"] < 0)).mean()),
        "passes": {"forward": float(of["forwards"].mean()), "backward": float(of["backwards"].mean())},
    }


def write_gallery(path: Path, clean: torch.Tensor, first: dict[str, torch.Tensor], changes: list[str]) -> None:
    """Draw images of the first shard, those broken by a mixture first: clean, mixture, noise, and the sum of all."""
    broken = first[f"{MOVES}_broken_by"] > 0
    rows = (~broken).long().argsort(stable=True)[:ROWS]
    mixture, perturbed = first[f"{MOVES}_mixture"][rows], first[f"{MOVES}_image"][rows]
    columns = [
        Column("clean", clean[rows], [""] * len(rows)),
        Column("mixture", mixture, [_main(weights, changes) for weights in first[f"{MOVES}_weights"][rows]]),
        Column("noise\n(amplified)", amplified(perturbed - mixture), [""] * len(rows)),
        Column("all", perturbed, ["broken" if each else "holds" for each in broken[rows]]),
    ]
    write_strip(path, columns)


def _main(weights: torch.Tensor, changes: list[str]) -> str:
    """The largest weights and their changes, a line each."""
    largest = weights.argsort(descending=True)[:SHOWN].tolist()
    return "\n".join(f"{weights[k]:.2f} {changes[k].split(':')[0]}" for k in largest if weights[k] > 0.01)
