"""Tests whose accuracies compare: one evaluation of several models, on the same data, in the same way."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from runners.report.collect import FinishedRun
from runners.test.corruption_desc import WHAT, images_of, versions_in
from runners.test.desc import faults_left
from runners.test.summary import MOVES, OTHER_ANCHORS, describe_set

# The evaluations that sentences rank models by, hardest first.
RANKED = (MOVES, "N_adv", "adv", "corruption", "standard")
# Evaluation -> the flags of `test` that say how it is made, where its set and its attacks do not say it themselves.
BALL = ("adv_test_attack_type",)
FORM = ("weighted", "tangents", "tangent_weight", "segmented", "mask_source", "segmented_norm", "background")
INSIDE = ("N_attack_iter", "foreign_attacks", "eot", "projection", *FORM)
HOW: dict[str, tuple[str, ...]] = {
    "standard": (),
    "corruption": WHAT,
    "adv": BALL,
    "N_adv": INSIDE,
    OTHER_ANCHORS: INSIDE,
    MOVES: (*INSIDE, "safe_moves"),
}
MADE = {"corruption": "by_corruption", MOVES: "single"}  # evaluation -> its field with the corruptions by name
WITH_ANCHORS = ("N_adv", OTHER_ANCHORS, MOVES)


def measured_in(tests: list[FinishedRun]) -> list[str]:
    """The evaluations among RANKED that any of the tests has."""
    return [name for name in RANKED if any(name in run.result for run in tests)]


def comparable(name: str, tests: list[FinishedRun]) -> list[FinishedRun]:
    """Runs whose accuracies compare, best first: one for a model, measured in the way that most models were.

    Of several runs of a model in that way the one of most images, and of these the one that leaves least. Of several
    ways of as many models that of most images, and of these the one that leaves least: no way leads by being weak.
    """
    of = _by_way(name, tests)

    def weight(way: str) -> tuple[int, int, float, str]:
        found = [run.result[name] for run in of[way].values()]
        left = math.fsum(metrics["accuracy"] for metrics in found)
        return len(found), sum(metrics["num_examples"] for metrics in found), -left, way

    return sorted(of[max(of, key=weight)].values(), key=lambda run: (-run.result[name]["accuracy"], run.label))


def other_ways(name: str, tests: list[FinishedRun]) -> int:
    """The number of ways in which an evaluation was made, beside that of the runs that are compared."""
    return len(_by_way(name, tests)) - 1


def _by_way(name: str, tests: list[FinishedRun]) -> dict[str, dict[str, FinishedRun]]:
    """Way of an evaluation -> label of a model -> its run; the same in whatever order the tests come."""

    def size(run: FinishedRun) -> tuple[int, float, str]:
        return run.result[name]["num_examples"], -run.result[name]["accuracy"], run.relative

    of: dict[str, dict[str, FinishedRun]] = {}
    for run in sorted((run for run in tests if name in run.result), key=size):
        of.setdefault(way(name, run), {})[run.label] = run
    return of


def measured_alike(tests: list[FinishedRun], names: Sequence[str]) -> list[FinishedRun]:
    """The tests that compare under each of the evaluations `names` that they have."""
    of = {name: comparable(name, tests) for name in names if any(name in run.result for run in tests)}
    return [run for run in tests if all(run in found for name, found in of.items() if name in run.result)]


def way(name: str, run: FinishedRun) -> str:
    """The manner of an evaluation, as text: two runs that share it compare, whatever their numbers of images."""
    hashed, metrics = run.hparams.get("hashed", {}), run.result[name]
    testing = hashed.get("testing", {})
    same = {
        "images": images_of(hashed.get("dataset", {}), run.split),
        "split": run.split,
        "set": describe_set(metrics),
        "attacks": list(metrics.get("attacks", ())),
        "how": {flag: testing.get(flag) for flag in HOW[name]},
        "anchors": hashed.get("anchors") if name in WITH_ANCHORS else None,
        "corruptions": versions_in(hashed, metrics.get(MADE.get(name, ""), ())),
        "faults": faults_left(name, hashed),
        "version": hashed.get("ensemble") if "norm" in metrics else None,
    }
    return json.dumps(same, sort_keys=True)


def leading_measurement(measurements: list[FinishedRun]) -> tuple[FinishedRun, str]:
    """The measurement of threats that sentences speak of, and in brackets which it is, if there are several.

    That with most anchors of a class, of these the one of most images, and of these the one in which the first threat
    tells least.
    """

    def size(run: FinishedRun) -> tuple[int, int, float, str]:
        per_label = re.search(r"\d+", run.hparams.get("name", ""))  # greedy_subsets_50
        told: list[dict[str, float]] = [*run.result.get("separation", {}).values()]
        tells = told[0]["auroc"] if told else 0.0
        return int(per_label[0]) if per_label else 0, run.result["num_examples"], -tells, run.relative

    leading = max(measurements, key=size)
    several = len(measurements) > 1
    return leading, f" ({leading.label}, {leading.result['num_examples']:,} images)" if several else ""
