"""Tests whose accuracies compare: one evaluation of several models, on the same data, in the same way."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy

from runners.paired import paired
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

    Of several runs of a model in that way the one of most images, and of these the one that leaves least.
    """
    of: dict[str, dict[str, FinishedRun]] = {}
    measured = [run for run in tests if name in run.result]
    for run in sorted(measured, key=lambda run: (run.result[name]["num_examples"], -run.result[name]["accuracy"])):
        of.setdefault(way(name, run), {})[run.label] = run
    most = max(of.values(), key=len)
    return sorted(most.values(), key=lambda run: -run.result[name]["accuracy"])


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

    That with most anchors of a class, and of these the one of most images.
    """

    def size(run: FinishedRun) -> tuple[int, int]:
        per_label = re.search(r"\d+", run.hparams.get("name", ""))  # greedy_subsets_50
        return int(per_label[0]) if per_label else 0, run.result["num_examples"]

    leading = max(measurements, key=size)
    several = len(measurements) > 1
    return leading, f" ({leading.label}, {leading.result['num_examples']:,} images)" if several else ""


def paired_p(first: FinishedRun, second: FinishedRun, column: str) -> float | None:
    """The p-value of the paired test of two runs; None without common examples or columns."""
    files = [run.path / "examples.npz" for run in (first, second)]
    if not all(file.is_file() for file in files):
        return None
    with numpy.load(files[0], allow_pickle=False) as mine, numpy.load(files[1], allow_pickle=False) as its:
        found = paired(mine, its, column)
    return None if found is None else found.p
