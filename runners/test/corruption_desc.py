"""Flags and summary of --corruption_eval. Does not import torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from foundations.desc import StoredRun
from foundations.environment import resolve_root
from foundations.errors import UsageError, check_choice
from foundations.input_hparams import DatasetHparams
from foundations.results import markdown_table, rounded
from foundations.testing_hparams import TestingHparams
from runners.checks import SUITE_NAMES, names_in, versions_of
from threat_specification.perturbations.registry import SUITES

WHAT = ("corruption_suites", "corruption_severities", "corruption_eval_files")  # flags that say which corruptions
ANEW = "test the baseline again, by the command in its hparams.json, and name the new run"
# Flags of the data that change the training images alone, but for the set synthetic.
OF_TRAINING_IMAGES = {"subsample_fraction", "subsample_version", "random_labels_fraction", "data_seed"}


@dataclass(frozen=True)
class BaselineRun(StoredRun):
    """The test run that --corruption_baseline names, with whose errors others are compared."""

    def flags(self) -> dict[str, Any]:
        return {"corruption_baseline": self.relative}


def suites_at(testing: TestingHparams) -> dict[str, tuple[int, ...]]:
    """Suite -> its severities; raises UsageError for a name that is no SUITE or SUITE:SEVERITY."""
    found: dict[str, set[int]] = {}
    for entry in names_in(testing.corruption_suites):
        suite, colon, level = entry.partition(":")
        check_choice("corruption_suites", suite, SUITE_NAMES)
        if colon and level not in ("1", "2", "3", "4", "5"):
            raise UsageError(f"--corruption_suites: expected a severity from 1 to 5, such as {suite}:3, got {entry}")
        found.setdefault(suite, set()).update([int(level)] if colon else map(int, testing.corruption_severities))
    return {suite: tuple(sorted(found[suite])) for suite in SUITE_NAMES if suite in found}


def resolved(testing: TestingHparams) -> TestingHparams:
    """The flags with the corruptions that they mean, written in one way; raises UsageError if they mean none.

    Files are evaluated alone where no suite is named: they hold most of the corruptions of C themselves.
    """
    if not testing.corruption_eval:
        return testing
    if testing.corruption_eval_files and testing.split != "test":
        raise UsageError(f"--corruption_eval_files: expected --split=test, whose images they are, got {testing.split}")
    suites_at(testing)
    named = sorted(set(names_in(testing.corruption_suites)), key=lambda e: (SUITE_NAMES.index(e.partition(":")[0]), e))
    suites = ",".join(named) or ("" if testing.corruption_eval_files else "C")
    severities = tuple(sorted(set(testing.corruption_severities)))
    return dataclasses.replace(testing, corruption_suites=suites, corruption_severities=severities)


def baseline_of(testing: TestingHparams, values: dict[str, Any]) -> BaselineRun | None:
    """The run that --corruption_baseline names; None without one."""
    if not (testing.corruption_eval and testing.corruption_baseline):
        return None
    path, root = Path(testing.corruption_baseline).expanduser(), resolve_root(values.get("root_dir", ""))
    try:
        stored = StoredRun.read(path, root, "test")
    except UsageError as error:
        raise UsageError(f"--corruption_baseline: {error}") from error
    return BaselineRun(stored.path, stored.content)


def check_baseline(
    baseline: BaselineRun, dataset: DatasetHparams, testing: TestingHparams, faults: Iterable[str] = ()
) -> None:
    """Raise UsageError if a baseline was measured under other corruptions, or on other images, than the flags say.

    faults   those of its figures under corruptions that were mended since
    """
    if baseline.dataset_name != dataset.dataset_name:
        raise UsageError(
            f"--corruption_baseline: expected a test on {dataset.dataset_name}, got one on {baseline.dataset_name}"
        )
    _check_images(baseline.content["hashed"].get("dataset", {}), dataset, testing.split)
    theirs, ours = baseline.content["hashed"]["testing"], testing.hashed()
    if not theirs.get("corruption_eval"):
        raise UsageError(f"--corruption_baseline: expected a test with --corruption_eval, got {baseline.relative}")
    for name in ("split", *WHAT):
        # Numbers are a list once they were stored.
        stored, here = theirs.get(name), ours.get(name)
        if stored != (list(here) if isinstance(here, tuple) else here):
            raise UsageError(f"--corruption_baseline: expected a test with the same --{name}, {here}, got {stored}")
    _check_versions(baseline.content["hashed"], suites_at(testing))
    if left := ", ".join(faults):
        raise UsageError(f"--corruption_baseline: expected a test since this was mended: {left}; {ANEW}")


def _check_versions(hashed: dict[str, Any], suites: Iterable[str]) -> None:
    """Raise UsageError if the images of corruptions were others when a baseline, by its hashed part, was measured."""
    theirs, ours = versions_in(hashed, suites), versions_in(versions_of(list(suites)), suites)
    if other := [name for name in sorted({**theirs, **ours}) if theirs.get(name) != ours.get(name)]:
        raise UsageError(
            f"--corruption_baseline: expected a test under the same images of corruptions, got one under other "
            f"versions of {', '.join(other)}; {ANEW}"
        )


def versions_in(hashed: Mapping[str, Any], corruptions: Iterable[str]) -> dict[str, int]:
    """Corruption -> the version of its images in a run, by its hashed part, of those that have changed.

    corruptions   suites and names, also with a severity (fog:3); others are left out
    """
    given = [entry.partition(":")[0] for entry in corruptions]
    asked = {name for each in given for name in SUITES.get(each, [each])}
    return {name: version for name, version in hashed.get("corruption_versions", {}).items() if name in asked}


def _check_images(theirs: dict[str, Any], dataset: DatasetHparams, split: str) -> None:
    """Raise UsageError if the hashed flags of the baseline's data lead to other test images."""
    theirs, ours = images_of(theirs, split), images_of(dataset.hashed(), split)
    for name in {**theirs, **ours}:
        if theirs.get(name) != ours.get(name):
            there, here = theirs.get(name), ours.get(name)
            raise UsageError(
                f"--corruption_baseline: expected a test on the same images, got one with --{name} {there}, not {here}"
            )


def images_of(hashed: dict[str, Any], split: str) -> dict[str, Any]:
    """The hashed flags of the data that decide the images of a test on a split."""
    all_count = split != "test" or hashed.get("dataset_name") == "synthetic"
    return {name: value for name, value in hashed.items() if all_count or name not in OF_TRAINING_IMAGES}


def corruption_summary(result: dict[str, Any]) -> str:
    """Accuracy by corruption and severity, and in words what it is compared with; "" if it was not measured."""
    found = result.get("corruption")
    if found is None:
        return ""
    kinds = ", ".join(f"{kind} {rounded(accuracy)}" for kind, accuracy in found["by_category"].items())
    told = [markdown_table(*corruption_table(found)), over_severities(found), f"by category: {kinds}", _papers(found)]
    return "\n".join(filter(None, [*told, compared(found), _published(found), _no_answer(found)]))


def corruption_table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each corruption's mean and its accuracy at each severity; CE where there is a baseline.

    The last row has means: over all corruptions; at each severity over those that have all of them, so that severities
    differ by nothing else; and mCE.
    """
    accuracies: dict[str, dict[str, float]] = found["by_corruption"]
    levels, whole = _severities(accuracies)
    means = {name: fmean(of.values()) for name, of in accuracies.items()} | {"mean": found["accuracy"]}
    columns = {level: fmean(accuracies[name][level] for name in whole) for level in levels if whole}
    errors = {**found["CE"], "mean": found["mCE"]} if "CE" in found else {}

    def row(name: str, of: dict[str, float]) -> list[str]:
        shown = (rounded(of[level], 3) if level in of else "-" for level in levels)
        return [name, rounded(means[name]), *shown, *([rounded(errors[name], 3)] if errors else [])]

    header = ["corruption", "mean", *(f"severity {level}" for level in levels), *(["CE"] if errors else [])]
    return header, [row(name, of) for name, of in (accuracies | {"mean": columns}).items()]


def _severities(accuracies: dict[str, dict[str, float]]) -> tuple[list[str], list[str]]:
    """The severities that any corruption has, and the corruptions that have all of these."""
    levels = sorted({level for of in accuracies.values() for level in of})
    return levels, [name for name, of in accuracies.items() if len(of) == len(levels)]


def over_severities(found: dict[str, Any]) -> str:
    """The corruptions that the means by severity are over, in words, where these are not all; else ""."""
    levels, whole = _severities(found["by_corruption"])
    every = len(found["by_corruption"])
    if not whole:
        return f"no corruption has all {len(levels)} severities: there are no means by severity"
    over = f"the {len(whole)} of {every} corruptions that have all {len(levels)}, the first mean over all {every}"
    return "" if len(whole) == every else f"means by severity are over {over}"


def compared(found: dict[str, Any]) -> str:
    """The mCE, over which corruptions it is and in units of what, in words; "" without a baseline."""
    if "baseline" not in found:
        return ""
    of = found["baseline"]
    where = "" if of["same_images"] else f", on other images ({of['num_examples']})"
    over, every = found["mCE_over"], len(found["CE"])
    which = f"the paper's {over} of {every}" if over < every else f"all {every}"
    return (
        f"mCE {rounded(found['mCE'])} over {which} corruptions: errors in units of those of {of['name']} (accuracy "
        f"{rounded(of['accuracy'])}{where})"
    )


def _papers(found: dict[str, Any]) -> str:
    ours = found.get("accuracy_of_paper")
    return "" if ours is None else f"the 15 corruptions of Hendrycks and Dietterich (2019) alone: {rounded(ours)}"


def _published(found: dict[str, Any]) -> str:
    if found.get("published") is None:
        return ""
    ours = found["accuracy_of_published"]
    here = "not all of them were measured here" if ours is None else f"here {rounded(ours)} {found['published_source']}"
    return f"RobustBench published {rounded(found['published'])}, for {found['published_for']}; {here}"


def _no_answer(found: dict[str, Any]) -> str:
    count = found["no_answer"]
    return f"the model had no finite answer for {count} corrupted images, which count as wrong" if count else ""
