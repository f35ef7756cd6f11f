"""The best model, and those that cannot be told from it: from the figures of results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runners.report.answer import answer
from runners.report.collect import FinishedRun
from runners.report.highlights import found_in


def run(name: str, accuracy: float, count: int, attacks: tuple[str, ...] = ("apgd_ce", "pgd")) -> FinishedRun:
    found: dict[str, Any] = {"accuracy": accuracy, "num_examples": count, "norm": "PD", "threshold": 0.1, "radius": 0.3}
    found |= {"attacks": dict.fromkeys(attacks, accuracy), "warnings": []}
    hparams = {"name": name, "replicate": 1, "hashed": {}}
    return FinishedRun(Path(name), name, hparams, {"N_adv": found})


def first(*tests: FinishedRun) -> str:
    return answer({"test": list(tests), "evaluate_threat": []})[0]


def test_a_model_measured_on_few_images_cannot_be_told_from_the_best_one() -> None:
    told = first(run("many", 0.60, 10_000), run("few", 0.55, 20))
    assert "many stands best of 2" in told and told.endswith("; few cannot be told from it by so few images.")
    assert "cannot be told" not in first(run("many", 0.60, 10_000), run("more", 0.50, 10_000))


def test_a_model_under_fewer_attacks_is_not_ranked_with_others() -> None:
    told = first(run("strong", 0.4, 500), run("other", 0.3, 500), run("hardly attacked", 0.9, 500, ("pgd",)))
    assert "strong stands best of 2" in told and "hardly" not in told


def test_the_line_of_the_terminal_counts_models_that_were_measured_there_once() -> None:
    """Not those that were measured on clean images alone, nor one that was tested twice."""
    clean = FinishedRun(Path("c"), "c", {"name": "clean", "replicate": 1, "hashed": {}}, {"standard": {}})
    clean.result["standard"] |= {"accuracy": 0.9, "num_examples": 100}
    tests = [run("one", 0.4, 500), run("one", 0.5, 40), clean]
    for more, told in (([], "accuracy of one: "), ([run("two", 0.3, 500)], "the most robust of 2 models, one: ")):
        lines = found_in({"set": {"test": [*tests, *more], "evaluate_threat": []}})
        assert told in lines[0]
