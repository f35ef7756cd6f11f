"""The answer at the top of a page, in plain sentences: who stands best, where the threat tells, what to doubt."""

from __future__ import annotations

from typing import Any

from foundations.results import percent, rounded
from runners.report.collect import FinishedRun
from runners.report.comparable import leading_measurement, measured_in
from runners.report.standing import Standing, interval, listed
from runners.report.tables import by_accuracy
from runners.test.summary import AUDIT, EVALUATIONS, describe_set

Runs = dict[str, list[FinishedRun]]

TELLS, GUESSES = 0.9, 0.75  # AUROC above which a threat tells well, and below which it hardly does
CHANCE = 0.5  # AUROC of a threat that says nothing


def answer(runs: Runs) -> list[str]:
    """At most five sentences over the runs of one data set."""
    tests = by_accuracy([run for run in runs["test"] if run.split == "test"])
    return [*_best(tests), *_others(tests), *_threat(runs["evaluate_threat"]), *_doubts(tests), _first(runs, tests)]


def _best(tests: list[FinishedRun]) -> list[str]:
    """The best model in the hardest evaluation."""
    measured = measured_in(tests)
    return [_standing(measured[0], tests)] if measured else []


def _others(tests: list[FinishedRun]) -> list[str]:
    """The best model in the next evaluation in which it is another one, or in which a rival is ahead of it."""
    measured = measured_in(tests)
    if len(measured) < 2:
        return []
    first = Standing(measured[0], tests)
    for name in measured[1:]:
        there = Standing(name, tests)
        if there.leader.label != first.leader.label or not there.is_best:
            return [_standing(name, tests)]
    led = listed([_where(name).lower() for name in measured[1:]])
    return [f"It also leads {led}."] if first.rivals and first.is_best else []


def _where(name: str) -> str:
    return "On clean images" if name == "standard" else f"Under {EVALUATIONS[name]}"


def _standing(name: str, tests: list[FinishedRun]) -> str:
    standing = Standing(name, tests)
    leader, doubts = standing.leader, standing.doubts()
    found = leader.result[name]
    low, high = interval(leader, name)
    where = f"{_where(name)} ({describe_set(found)})" if "norm" in found else _where(name)
    kept = f"is right on {percent(found['accuracy'], 1)} of {found['num_examples']} images "
    kept += f"({percent(low, 1)} to {percent(high, 1)})"
    if not standing.rivals:
        return f"{where}, {leader.label} {kept}{doubts}; no other model was measured there."
    stands = "stands best" if standing.is_best else "has the highest figure"
    return f"{where}, {leader.label} {stands} of {len(standing.models)}: it {kept}{doubts}."


def _threat(measurements: list[FinishedRun]) -> list[str]:
    """The changes for which PD tells unsafe from safe, and those for which it does not."""
    if not measurements:
        return []
    leading, which = leading_measurement(measurements)
    result = leading.result
    threat = next(iter(result["separation"]))
    by = {
        name: of[threat]["auroc"] for name, of in result.get("separation_by_perturbation", {}).items() if threat in of
    }
    weak = sorted((name for name, value in by.items() if value < GUESSES), key=by.__getitem__)
    well = sum(value >= TELLS for value in by.values())
    auroc = result["separation"][threat]["auroc"]
    text = (
        f"{threat} tells unsafe changes from safe ones with AUROC {rounded(auroc, 3)}{which}: well (at least "
        f"{TELLS:g}) for {well} of {len(by)} perturbations"
    )
    if weak:
        text += f", hardly for {listed([f'{name} ({rounded(by[name], 2)})' for name in weak])}"
    people = result.get("human", {}).get("within_groups", {}).get("auroc", {}).get(threat)
    if people:
        low, high = people["low"], people["high"]
        verb = "agrees" if low > CHANCE else "disagrees" if high < CHANCE else "cannot be told to agree"
        text += f"; within groups of changes it {verb} with what people see "
        text += f"({rounded(people['auroc'], 2)}, {rounded(low, 2)} to {rounded(high, 2)})"
    return [f"{text}."]


def _doubts(tests: list[FinishedRun]) -> list[str]:
    """The warnings that stand, and what an audit says of the attacks."""
    if not any("N_adv" in run.result or "adv" in run.result for run in tests):
        return []
    doubted = [run.label for run in tests if any(run.result.get(name, {}).get("warnings") for name in EVALUATIONS)]
    short = [run.label for run in tests if _missed(run.result.get(AUDIT)) > 0]
    text = f"Figures of {listed(doubted)} may be too high" if doubted else "No warning stands against any figure"
    return [f"{text}{f'; attacks of the audit found more on {listed(short)}' if short else ''}."]


def _missed(audit: dict[str, Any] | None) -> float:
    """Accuracy of the ensemble above the best that its audit knows."""
    if audit is None or not audit["in_turn"]["ensemble"]:
        return 0.0
    return audit["in_turn"]["ensemble"][-1]["accuracy"] - audit["best"]


def _first(runs: Runs, tests: list[FinishedRun]) -> str:
    """The first thing to look at."""
    if any(run.result.get(name, {}).get("warnings") for run in tests for name in EVALUATIONS):
        return "Look first at the table of warnings."
    if tests:
        return "Look first at the pictures of examples: does each adversarial example still show its class?"
    if runs["evaluate_threat"]:
        return "Look first at the gallery: are the safe changes safe, and the unsafe ones unsafe?"
    return "No accuracy was measured yet: python nonisotropic.py test measures it."
