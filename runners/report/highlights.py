"""The main findings in a few lines: separation of threats, the most robust model, warnings."""

from __future__ import annotations

from foundations.results import wilson_interval
from runners.evaluate_threat.desc import HEADLINE
from runners.report.collect import FinishedRun
from runners.report.comparable import comparable, leading_measurement, measured_in, other_ways
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
        held = ", ".join(f"{threat} {found[f'{HEADLINE:g}']['unsafe_held']:.3f}" for threat, found in levels)
        told = f"sets that hold {HEADLINE:.0%} of the safe changes hold this share of the unsafe ones"
        lines.append(f"{told}{which}: {held}")
    lines.append(f"unsafe changes are told from safe ones with AUROC {_aurocs(result['separation'])}{which}")
    if within := _aurocs(result.get("human", {}).get("within_groups", {}).get("auroc", {})):
        lines.append(
            f"changes in which people see another class are told from others of their group with AUROC {within}"
        )
    return lines


def _aurocs(found: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{threat} {metrics['auroc']:.3f}" for threat, metrics in found.items())


def _models(runs: dict[str, list[FinishedRun]]) -> list[str]:
    tested = [run for run in runs["test"] if run.split == "test"]
    if not (measured := measured_in(tested)):
        return []
    models = comparable(measured[0], tested)
    best, parts = models[0], []
    for name, words in EVALUATIONS.items():
        if name in best.result:
            metrics = best.result[name]
            low, high = wilson_interval(metrics["accuracy"], metrics["num_examples"])
            where = f" ({describe_set(metrics)})" if "norm" in metrics else ""
            parts.append(f"{words}{where} {metrics['accuracy']:.3f} [{low:.3f}, {high:.3f}]")
    most = f"the most robust of {len(models)} models, " if len(models) > 1 else ""
    ways = other_ways(measured[0], tested)
    others = f"; {ways} other way{'s' * (ways > 1)} of measuring: see the page" if ways else ""
    return [f"accuracy of {most}{best.label}: {', '.join(parts)}{others}"]


def _warnings(runs: dict[str, list[FinishedRun]]) -> list[str]:
    count = sum(len(run.result.get(name, {}).get("warnings") or ()) for run in runs["test"] for name in EVALUATIONS)
    if not runs["test"]:
        return []
    return [f"{count} warnings that accuracies may be too high: see the page" if count else "no warnings"]
