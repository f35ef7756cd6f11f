"""Accuracy under corruptions in a test run: which corruptions, the fields of result.json, and a CSV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy

from datasets.base import Dataset
from foundations.environment import Environment
from foundations.errors import RunError, UsageError
from foundations.results import csv_table
from foundations.run_directory import RunDirectory
from foundations.testing_hparams import TestingHparams
from models.robustbench_registry import PUBLISHED_CORRUPTIONS, ZooModel
from runners.corruptions import FROM_FILE, category_of, from_files, safe
from runners.test.corruption_desc import BaselineRun, suites_at
from testing.corruptions import Accuracies, by_corruption, corruption_errors, mean_accuracy, without_errors
from testing.perturbed import Perturbation
from threat_specification.perturbations.registry import CATEGORIES, OTHER


def chosen(testing: TestingHparams, data: Dataset, seed: int) -> list[Perturbation]:
    """The corruptions that the flags name, those of suites first; raises UsageError if there are none."""
    made = [each for suite, levels in suites_at(testing).items() for each in safe([suite], levels, seed)]
    if testing.corruption_eval_files:
        made += from_files(Path(testing.corruption_eval_files), data, testing.corruption_severities)
    if not made:
        raise UsageError("--corruption_severities: expected severities that the corruptions have, got none of theirs")
    return made


def read_baseline(run: BaselineRun, environment: Environment) -> dict[str, Any]:
    """The field `corruption` of the result of a baseline, with its name; and the images that it was measured on."""
    directory = RunDirectory(run.directory(environment.root_dir))
    if not directory.is_complete:
        raise RunError(f"--corruption_baseline: expected a finished test, got one to be finished: {run.relative}")
    found = directory.result()["corruption"]
    if free := without_errors(found["by_corruption"]):
        raise RunError(
            f"--corruption_baseline: expected a model that errs under every corruption, got none under {free[0]} "
            f"among {found['num_examples']} images; use more images, or another baseline"
        )
    with numpy.load(directory / "examples.npz", allow_pickle=False) as arrays:
        return {**found, "name": run.name, "index": arrays["index"]}


def metrics(
    corruptions: list[Perturbation],
    arrays: dict[str, numpy.ndarray],
    index: numpy.ndarray,
    baseline: dict[str, Any] | None,
) -> dict[str, Any]:
    """The fields of result.json: accuracy by corruption and by category, their mean, and mCE against a baseline.

    mCE, and a second mean, are over the 15 corruptions of the paper where all are there; mCE else over all.

    index   [n] rows of the images in the data set
    """
    found = by_corruption(corruptions, arrays["corruption_correct"])
    papers, _ = of_the_paper(found)
    fields = {
        "accuracy": mean_accuracy(found),
        "by_corruption": found,
        "by_category": by_category(found),
        **({"accuracy_of_paper": mean_accuracy({name: found[name] for name in papers})} if papers else {}),
        "no_answer": int(arrays["corruption_no_answer"].sum()),
    }
    if baseline is None:
        return fields
    errors = corruption_errors(found, baseline["by_corruption"])
    same = numpy.array_equal(index, baseline["index"])
    told = {name: baseline[name] for name in ("name", "accuracy", "num_examples")} | {"same_images": same}
    counted = papers or list(errors)
    mean = fmean(errors[name] for name in counted)
    return fields | {"mCE": mean, "mCE_over": len(counted), "CE": errors, "baseline": told}


def of_the_paper(accuracies: Mapping[str, Any]) -> tuple[list[str], str]:
    """The names of the 15 corruptions of Hendrycks and Dietterich (2019), and in words whose they are.

    Those of files come first, which published figures are of. ([], "") unless all 15 are there, at the same severities.
    The four others of the suite C, and of its files, are that paper's validation set.
    """
    for suffix, source in ((FROM_FILE, "for those of files"), ("", "for the same ones made here, not those of files")):
        names = [f"{name}{suffix}" for name in PUBLISHED_CORRUPTIONS]
        if all(name in accuracies for name in names) and len({frozenset(accuracies[name]) for name in names}) == 1:
            return names, source
    return [], ""


def by_category(accuracies: Accuracies) -> dict[str, float]:
    """Category -> mean accuracy over its corruptions."""
    kinds = {name: category_of(name) for name in accuracies}
    return {
        kind: mean_accuracy({name: of for name, of in accuracies.items() if kinds[name] == kind})
        for kind in (*CATEGORIES, OTHER)
        if kind in kinds.values()
    }


def published(entry: ZooModel, accuracies: Accuracies) -> dict[str, Any]:
    """The figure of RobustBench for a model of its zoo of corruptions, and the same mean of the accuracies here.

    Those of files come first, which the published figures are of. {} for a model of another part of the zoo.
    """
    if entry.threat_model != "corruptions":
        return {}
    files = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C", "imagenet": "ImageNet-C"}[entry.dataset_name]
    fields: dict[str, Any] = {
        "published": entry.robust,
        "published_for": f"the mean over the {len(PUBLISHED_CORRUPTIONS)} corruptions of {files}, severities 1 to 5",
        "accuracy_of_published": None,
    }
    names, source = of_the_paper(accuracies)
    same = {name: accuracies[name] for name in names}
    if same and all(len(levels) == 5 for levels in same.values()):
        return fields | {"accuracy_of_published": mean_accuracy(same), "published_source": source}
    return fields


def corruptions_csv(found: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """CSV with a row for each corruption and severity; with a baseline, its accuracy too."""
    header = ["corruption", "category", "severity", "accuracy", *["baseline"] * (baseline is not None)]
    rows = [
        [name, category_of(name), level, repr(accuracy)]
        + ([] if baseline is None else [repr(baseline["by_corruption"][name][level])])
        for name, levels in found["by_corruption"].items()
        for level, accuracy in levels.items()
    ]
    return csv_table([header, *rows])
