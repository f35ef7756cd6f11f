"""Anchors chosen by raw and by normalised images: coverage, separation, and how much a replicate matters.

python benchmarks/study_selection.py --dataset_name=mnist_5k [--images=300] [any flag of evaluate_threat]

Chooses anchors in both spaces for five replicates each (kept as runs of compute_threat), and measures PD by all ten of
the same perturbed images, with the seeds of evaluate_threat. A few minutes on one core for 300 images.
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from scipy.stats import spearmanr

from cli.main import main as command_line
from cli.main import runner_parser
from datasets.statistics import channel_statistics
from foundations.environment import make_environment
from runners.compute_threat.desc import ThreatDesc
from runners.evaluate_threat.desc import EvaluateThreatDesc
from runners.evaluate_threat.runner import EvaluateThreat
from runners.evaluate_threat.statistics import Separations
from runners.inputs import read_threat
from testing.perturbed import PerturbationEvaluation
from testing.separation import MATCHED, Bootstrap
from testing.shards import evaluate_in_shards
from threat_specification import L2, Measure, ProjectedDisplacement
from threat_specification.projected_displacement.anchor_selection import coverage
from threat_specification.projected_displacement.selection_space import RAW, SelectionSpace

SPACES, REPLICATES = ("raw", "normalised"), (1, 2, 3, 4, 5)
Array = numpy.ndarray


class Study(EvaluateThreat):
    """The measurement of evaluate_threat, by PD over every choice of anchors."""

    choices: dict[str, ThreatDesc]

    def _measures(self) -> dict[str, Measure]:
        return {"L2": L2()} | {name: read_threat(desc, self.environment) for name, desc in self.choices.items()}

    def measure(self) -> dict[str, Array]:
        """PD of every perturbation of every image, [n, P], by name."""
        evaluation, test = PerturbationEvaluation(self.perturbations, self.measures), self.data.test
        size = self.desc.perturbation.images_per_shard
        return evaluate_in_shards(test.pixels, test.labels, self.index, size, [evaluation], self.environment)


def choose(flags: list[str]) -> dict[str, ThreatDesc]:
    """The runs of compute_threat, by the names of their threats."""
    made = {}
    for space in SPACES:
        for replicate, name in zip(REPLICATES, names(space), strict=True):
            words = [*flags, f"--selection_space={space}", f"--threat_replicate={replicate}", "--quiet"]
            if command_line(["compute_threat", *words]):
                raise SystemExit(f"failed: compute_threat {' '.join(words)}")
            made[name] = ThreatDesc.from_flags(runner_parser("compute_threat", words).parse(words))
    return made


def names(space: str) -> list[str]:
    return [f"PD[{space} {replicate}]" for replicate in REPLICATES]


def covered(study: Study) -> dict[str, dict[str, list[float]]]:
    """Space of selection -> space of coverage -> lowest coverage of a class, for each replicate."""
    normalised = SelectionSpace(*channel_statistics(study.data, study.desc.dataset, study.environment))
    found: dict[str, dict[str, list[float]]] = {}
    for space in SPACES:
        found[space] = {of: [] for of in SPACES}
        for name in names(space):
            anchors = _threat(study, name).anchors
            assert anchors is not None and anchors.indices is not None
            rows = [anchors.indices[anchors.labels == label] for label in study.data.train_rows()]
            each = [
                coverage(study.data.train.read, [RAW, normalised], everyone, mine)
                for everyone, mine in zip(study.data.train_rows().values(), rows, strict=True)
            ]
            for of, lowest in zip(SPACES, numpy.array(each).min(0), strict=True):
                found[space][of].append(float(lowest))
    return found


def _threat(study: Study, name: str) -> ProjectedDisplacement:
    threat = study.measures[name]
    assert isinstance(threat, ProjectedDisplacement)
    return threat


def overlap(study: Study) -> list[float]:
    """For each replicate the share of anchors that both spaces choose; they draw the same candidates."""
    shares = []
    for pair in zip(*(names(space) for space in SPACES), strict=True):
        first, second = (set(_threat(study, name).anchors.indices.tolist()) for name in pair)  # type: ignore[union-attr]
        shares.append(len(first & second) / len(first))
    return shares


def matched(values: Array, lengths: Array, separations: Separations) -> tuple[float, Array]:
    """The AUROC over pairs of equal l2, and that of every resample of the images."""
    safe, unsafe, counts = separations.safe, separations.unsafe, separations.bootstrap.counts
    first, second = lengths[:, safe, None], lengths[:, None, unsafe]
    larger = numpy.maximum(first, second)
    pairs = (numpy.abs(first - second) <= MATCHED * larger) & (larger > 0)
    below, above = values[:, safe, None], values[:, None, unsafe]
    won, number = (((above > below) + 0.5 * (above == below)) * pairs).sum((1, 2)), pairs.sum((1, 2))
    return float(won.sum() / number.sum()), counts @ won / (counts @ number)


def separated(study: Study, threats: dict[str, Array]) -> dict[str, dict[str, list[tuple[float, Array]]]]:
    """Comparison -> space -> for each replicate the AUROC, and that of every resample of the images."""
    bootstrap = Bootstrap.over(len(study.index), study.desc.perturbation.bootstrap, study.seed)
    separations = Separations(study.perturbations, threats, bootstrap)
    directions = separations.directions()

    def placed(values: Array) -> tuple[float, Array]:
        placements = separations.placements(values, separations.unsafe)
        return placements.auroc, placements.resampled(bootstrap)

    return {
        "overall": {space: [placed(threats[name]) for name in names(space)] for space in SPACES},
        "matched in l2": {
            space: [matched(threats[name], threats["L2"], separations) for name in names(space)] for space in SPACES
        },
        "directions": {space: [placed(directions[name]) for name in names(space)] for space in SPACES},
    }


def agreement(threats: dict[str, Array], space: str) -> tuple[float, float]:
    """Mean over pairs of replicates: rank correlation of PD, and mean absolute difference relative to the mean."""
    correlations, differences = [], []
    for pair in combinations(names(space), 2):
        first, second = (threats[name].astype(numpy.float64).ravel() for name in pair)
        correlations.append(float(spearmanr(first, second).statistic))
        differences.append(2 * float(numpy.abs(first - second).sum() / (first + second).sum()))
    return float(numpy.mean(correlations)), float(numpy.mean(differences))


def spread(values: list[float]) -> str:
    return f"{numpy.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def report(study: Study, threats: dict[str, Array]) -> None:
    """A row for each quantity: mean over the replicates (lowest to highest), and for AUROCs the difference."""
    print("| quantity | raw | normalised | normalised - raw |\n|---|---|---|---|")
    found = covered(study)
    for of in SPACES:
        cells = " | ".join(spread(found[space][of]) for space in SPACES)
        print(f"| lowest coverage, {of} | {cells} | |")
    for comparison, results in separated(study, threats).items():
        cells = " | ".join(spread([auroc for auroc, _ in results[space]]) for space in SPACES)
        means: dict[str, Any] = {s: numpy.mean([auroc for auroc, _ in results[s]]) for s in SPACES}
        drawn = {s: numpy.mean([resampled for _, resampled in results[s]], axis=0) for s in SPACES}
        low, high = numpy.quantile(drawn["normalised"] - drawn["raw"], [0.025, 0.975])
        difference = means["normalised"] - means["raw"]
        print(f"| AUROC, {comparison} | {cells} | {difference:+.4f} [{low:+.4f}, {high:+.4f}] |")
    pairs = {space: agreement(threats, space) for space in SPACES}
    for place, quantity in enumerate(("rank correlation of replicates", "relative difference of replicates")):
        print(f"| {quantity} | " + " | ".join(f"{pairs[space][place]:.4f}" for space in SPACES) + " | |")
    print(f"\nanchors that both spaces choose: {spread(overlap(study))}; {len(study.index)} images")


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    images = next((word.partition("=")[2] for word in words if word.startswith("--images=")), "300")
    flags = [word for word in words if not word.startswith("--images=")]
    measured = [*flags, f"--num_images={images}"]
    values = runner_parser("evaluate_threat", measured).parse(measured)
    desc = EvaluateThreatDesc.from_flags(values | {"selection_space": SPACES[0]})
    Study.choices = choose(flags)
    study = Study(desc, make_environment("", values.get("data_dir", ""), "cpu", True, 0))
    study.prepare()
    report(study, study.measure())


if __name__ == "__main__":
    main(sys.argv[1:])
