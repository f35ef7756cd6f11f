"""The main findings in a few lines: separation of threats, the most robust model, warnings."""

from __future__ import annotations

from foundations.results import between, rounded
from runners.evaluate_threat.desc import HEADLINE
from runners.report.collect import FinishedRun
from runners.report.comparable import leading_measurement, measured_in
from runners.report.standing import Standing, interval
from runners.test.summary import EVALUATIONS, describe_set


def found_in(runs: dict[str, dict[str, list[FinishedRun]]]) -> list[str]:
    """The lines for each data set, from the runs that it has."""
    lines = []
    for name, of in runs.items():
        lines += [f"{name}: {line}" for line in (*_threats(of), *_models(of), *_warnings(of))]
    return lines


def _threats(runs: dict[str, list[FinishedRun]]) -> list[str]:
    if not runs["evaluate_threat"]:
        return []
    leading, which = leading_measurement(runs["evaluate_threat"])
    result = leading.result
    lines = []
    if result.get("coverage"):
        levels = result["coverage"]["threats"].items()
        held = ", ".join(f"{threat} {rounded(found[f'{HEADLINE:g}']['unsafe_held'], 3)}" for threat, found in levels)
        told = f"sets that hold {HEADLINE:.0%} of the safe changes hold this share of the unsafe ones"
        lines.append(f"{told}{which}: {held}")
    lines.append(f"unsafe changes are told from safe ones with AUROC {_aurocs(result['separation'])}{which}")
    if within := _aurocs(result.get("human", {}).get("within_groups", {}).get("auroc", {})):
        lines.append(
            f"changes in which people see another class are told from others of their group with AUROC {within}"
        )
    return lines


def _aurocs(found: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{threat} {rounded(metrics['auroc'], 3)}" for threat, metrics in found.items())


def _models(runs: dict[str, list[FinishedRun]]) -> list[str]:
    tested = [run for run in runs["test"] if run.split == "test"]
    if not (measured := measured_in(tested)):
        return []
    standing = Standing(measured[0], tested)
    best, count, parts = standing.leader, len(standing.models), []
    for name, words in EVALUATIONS.items():
        if name in best.result:
            metrics = best.result[name]
            low, high = interval(best, name)
            where = f" ({describe_set(metrics)})" if "norm" in metrics else ""
            of = f"{between(low, high)} of {metrics['num_examples']:,} images"
            parts.append(f"{words}{where} {rounded(metrics['accuracy'], 3)} {of}")
    most = f"the {'most robust' if standing.is_best else 'highest figure'} of {count} models, " if count > 1 else ""
    return [f"accuracy of {most}{best.label}: {', '.join(parts)}{standing.doubts()}"]


def _warnings(runs: dict[str, list[FinishedRun]]) -> list[str]:
    count = sum(len(run.result.get(name, {}).get("warnings") or ()) for run in runs["test"] for name in EVALUATIONS)
    if not runs["test"]:
        return []
    return [f"{count} warnings that accuracies may be too high: see the page" if count else "no warnings"]
