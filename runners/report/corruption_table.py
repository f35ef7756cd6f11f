"""The tables of accuracy under corruptions: models by category, and one model by corruption and severity."""

from __future__ import annotations

from foundations.results import rounded
from runners.report.collect import FinishedRun
from runners.report.tables import Table
from runners.test import corruption_desc

MOST_DETAILED = 3  # models whose accuracies are shown by corruption and severity


def corruption_tables(tests: list[FinishedRun]) -> list[Table]:
    """One row for each model with means by category, best first; then the best ones in full. [] if nobody asked."""
    tested = [run for run in tests if "corruption" in run.result]
    tested.sort(key=lambda run: -run.result["corruption"]["accuracy"])
    return [by_category(tested), *(in_full(run) for run in tested[:MOST_DETAILED])] if tested else []


def by_category(tested: list[FinishedRun]) -> Table:
    """One row for each model: its mean, those of categories, and mCE."""
    kinds = list(dict.fromkeys(kind for run in tested for kind in run.result["corruption"]["by_category"]))
    header = ["model", "all corruptions", *kinds, "mCE", "its baseline", "corruptions", "examples"]
    table = Table("Accuracy under corruptions", header)
    table.note = (
        "Means over corruptions of means over severities; models compare where their corruptions are the same. "
        "mCE: errors in units of those of the baseline, over the 15 corruptions of Hendrycks and Dietterich (2019) "
        "where all are there, else over all."
    )
    for run in tested:
        found = run.result["corruption"]
        means = [rounded(found["by_category"][kind]) if kind in found["by_category"] else "-" for kind in kinds]
        compared = [rounded(found["mCE"]), found["baseline"]["name"]] if "mCE" in found else ["-", "-"]
        counts = [str(len(found["by_corruption"])), str(found["num_examples"])]
        table.add([run.label, rounded(found["accuracy"]), *means, *compared, *counts], run)
    return table


def in_full(run: FinishedRun) -> Table:
    """Accuracy of one model by corruption and severity."""
    found = run.result["corruption"]
    header, rows = corruption_desc.corruption_table(found)
    table = Table(f"Under each corruption, {run.label}", header)
    told = ["The last row has means", corruption_desc.over_severities(found), corruption_desc.compared(found)]
    table.note = "; ".join(filter(None, told)) + "."
    for row in rows:
        table.add(row, run)
    return table
