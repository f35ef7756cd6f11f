"""The answer at the top of a page, in plain sentences: who stands best, where the threat tells, what to doubt."""

from __future__ import annotations

from typing import Any

from foundations.results import wilson_interval
from runners.report.collect import FinishedRun
from runners.report.comparable import comparable, leading_measurement, measured_in, other_ways, paired_p
from runners.report.tables import by_accuracy
from runners.test.summary import AUDIT, EVALUATIONS, describe_set

Runs = dict[str, list[FinishedRun]]

TELLS, GUESSES = 0.9, 0.75  # AUROC above which a threat tells well, and below which it hardly does
CHANCE = 0.5  # AUROC of a threat that says nothing
SIGNIFICANT = 0.05
NAMED = 3  # perturbations and models named in a sentence


def answer(runs: Runs) -> list[str]:
    """At most five sentences over the runs of one data set."""
    tests = by_accuracy([run for run in runs["test"] if run.split == "test"])
    return [*_best(tests), *_others(tests), *_threat(runs["evaluate_threat"]), *_doubts(tests), _first(runs, tests)]


def _best(tests: list[FinishedRun]) -> list[str]:
    """The best model in the hardest evaluation."""
    measured = measured_in(tests)
    return [_standing(measured[0], tests)] if measured else []


def _others(tests: list[FinishedRun]) -> list[str]:
    """The best model in the next evaluation in which it is another one."""
    measured = measured_in(tests)
    if len(measured) < 2:
        return []
    first = comparable(measured[0], tests)[0].label
    for name in measured[1:]:
        if comparable(name, tests)[0].label != first:
            return [_standing(name, tests)]
    several = len(comparable(measured[0], tests)) > 1
    return [f"It also leads {_listed([_where(name).lower() for name in measured[1:]])}."] if several else []


def _where(name: str) -> str:
    return "On clean images" if name == "standard" else f"Under {EVALUATIONS[name]}"


def _standing(name: str, tests: list[FinishedRun]) -> str:
    leader, *others = comparable(name, tests)
    found = leader.result[name]
    low, high = _interval(leader, name)
    where = f"{_where(name)} ({describe_set(found)})" if "norm" in found else _where(name)
    kept = f"is right on {found['accuracy']:.1%} of {found['num_examples']} images ({low:.1%} to {high:.1%})"
    ways = other_ways(name, tests)
    kept += (
        f"; {ways} other way{'s' * (ways > 1)} of measuring it stand{'s' * (ways == 1)} in the table" if ways else ""
    )
    if not others:
        return f"{where}, {leader.label} {kept}; no other model was measured there."
    near = [run.label for run in others if not _differ(leader, run, name)]
    close = f"; {_listed(near)} cannot be told from it by so few images" if near else ""
    return f"{where}, {leader.label} stands best of {len(others) + 1}: it {kept}{close}."


def _differ(leader: FinishedRun, run: FinishedRun, name: str) -> bool:
    """True if the first is right more often: by a paired test on their common images, else by their intervals."""
    p = paired_p(leader, run, f"{name}_correct")
    return _interval(run, name)[1] < _interval(leader, name)[0] if p is None else p < SIGNIFICANT


def _interval(run: FinishedRun, name: str) -> tuple[float, float]:
    return wilson_interval(run.result[name]["accuracy"], run.result[name]["num_examples"])


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
        f"{threat} tells unsafe changes from safe ones with AUROC {auroc:.3f}{which}: well (at least {TELLS:g}) for "
        f"{well} of {len(by)} perturbations"
    )
    if weak:
        text += f", hardly for {_listed([f'{name} ({by[name]:.2f})' for name in weak])}"
    people = result.get("human", {}).get("within_groups", {}).get("auroc", {}).get(threat)
    if people:
        low, high = people["low"], people["high"]
        verb = "agrees" if low > CHANCE else "disagrees" if high < CHANCE else "cannot be told to agree"
        text += f"; within groups of changes it {verb} with what people see "
        text += f"({people['auroc']:.2f}, {low:.2f} to {high:.2f})"
    return [f"{text}."]


def _doubts(tests: list[FinishedRun]) -> list[str]:
    """The warnings that stand, and what an audit says of the attacks."""
    if not any("N_adv" in run.result or "adv" in run.result for run in tests):
        return []
    doubted = [run.label for run in tests if any(run.result.get(name, {}).get("warnings") for name in EVALUATIONS)]
    short = [run.label for run in tests if _missed(run.result.get(AUDIT)) > 0]
    text = f"Figures of {_listed(doubted)} may be too high" if doubted else "No warning stands against any figure"
    return [f"{text}{f'; attacks of the audit found more on {_listed(short)}' if short else ''}."]


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


def _listed(words: list[str]) -> str:
    """Words in a sentence; of many the first few."""
    shown = words[:NAMED]
    if len(words) > NAMED:
        return f"{', '.join(shown)} and {len(words) - NAMED} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
