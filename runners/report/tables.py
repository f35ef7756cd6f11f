"""The tables of a report: header and rows of text, used for HTML, Markdown and CSV."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from foundations.results import between, percent, rounded, wilson_interval
from runners.evaluate_threat.desc import COMPARISONS, HEADLINE
from runners.report.collect import FinishedRun
from runners.test.audit_table import audit_rows, audit_sentence
from runners.test.bracket import CERTIFIED, bracket, remark
from runners.test.summary import AUDIT, EVALUATIONS, EXACT, MOVES, describe_set, grid_table, hardest_last


@dataclass
class Table:
    """A title, a header and rows; `runs` gives for each row the run that it comes from."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    runs: list[FinishedRun | None] = field(default_factory=list)
    note: str = ""

    def add(self, row: list[str], run: FinishedRun | None) -> None:
        """Add a row, with the run that it comes from."""
        self.rows.append(row)
        self.runs.append(run)


def by_accuracy(tests: list[FinishedRun]) -> list[FinishedRun]:
    """The tests ordered by accuracy, best first; the hardest evaluation decides, then the next hardest."""
    names = hardest_last([run.result for run in tests])

    def key(run: FinishedRun) -> list[float]:
        return [-run.result.get(name, {}).get("accuracy", -1) for name in reversed(names)]

    return sorted(tests, key=key)


# Evaluations with a column of the leaderboard only where a test has them, with its heading.
MORE_COLUMNS = {"corruption": "corruptions", MOVES: "worst safe changes and noise", EXACT: "proven robust"}


def accuracy_table(tests: list[FinishedRun], title: str = "Accuracy") -> Table:
    """The leaderboard: one row for each evaluation of a model, best first."""
    more = {name: words for name, words in MORE_COLUMNS.items() if any(name in run.result for run in tests)}
    attacks = ["isotropic attack", "its set", "nonisotropic attack", "its set (PD)"]
    header = ["model", "clean", *more.values(), *attacks, "examples"]
    table = Table(title, header, note="Fractions; brackets hold 95 % intervals (Wilson).")
    for run in by_accuracy(tests):
        examples = next(run.result[name]["num_examples"] for name in EVALUATIONS if name in run.result)
        sets = {name: describe_set(run.result[name]) if name in run.result else "-" for name in ("adv", "N_adv")}
        accuracies = [_accuracy(run, name) for name in ("standard", "adv", "N_adv")]
        clean, isotropic, nonisotropic = accuracies
        under = [_accuracy(run, name) for name in more]
        table.add([run.label, clean, *under, isotropic, sets["adv"], nonisotropic, sets["N_adv"], str(examples)], run)
    return table


def _accuracy(run: FinishedRun, name: str) -> str:
    metrics = run.result.get(name)
    if metrics is None:
        return "-"
    low, high = wilson_interval(metrics["accuracy"], metrics["num_examples"])
    return f"{rounded(metrics['accuracy'])} {between(low, high)}"


def grid_table_of(run: FinishedRun) -> Table | None:
    """Accuracy by threshold and radius; None if no grid was asked for."""
    metrics = run.result["N_adv"]
    if len(metrics["curve"]) < 2:
        return None
    header, rows = grid_table(metrics)
    table = Table(f"Grid of {run.label}, {metrics['num_examples']} examples", header)
    for row in rows:
        table.add(row, run)
    return table


def audit_table_of(run: FinishedRun) -> Table | None:
    """The findings of each attack alone; None without an audit."""
    found = run.result.get(AUDIT)
    if found is None:
        return None
    header, rows = audit_rows(found)
    table = Table(f"Audit of the attacks on {run.label}", header, note=f"{audit_sentence(found).capitalize()}.")
    for row in rows:
        table.add(row, run)
    return table


def paired_table(comparisons: list[FinishedRun]) -> Table | None:
    """McNemar's tests of the multi_test runs; None if there are none."""
    header = ["evaluation", "first", "second", "only first right", "only second right", "McNemar p"]
    table = Table("Paired tests", header)
    for run in comparisons:
        for test in run.result.get("paired_tests", ()):
            cells = [test["evaluation"], test["first"], test["second"], str(test["only_first"])]
            table.add([*cells, str(test["only_second"]), f"{test['p']:.3g}"], run)
    return table if table.rows else None


def certificates_table(tests: list[FinishedRun]) -> Table | None:
    """The certified share of each model, with the bracket of those that have one; None if nothing was looked for."""
    header = ["model", "set", "certified", "certified by the radius alone", "[certified, attacked]", "s an image"]
    table = Table("Certificates", [*header, "remark"])
    table.note = "Accuracy in a set lies between what is certified and what attacks leave."
    for run in tests:
        if CERTIFIED in run.result:
            found = run.result[CERTIFIED]
            low, high = wilson_interval(found["box_accuracy"], found["num_examples"])
            alone = f"{rounded(found['box_accuracy'])} {between(low, high)}"
            cells = [describe_set(found), _accuracy(run, CERTIFIED), alone, bracket(run.result)]
            table.add([run.label, *cells, f"{found['seconds_per_example']:.3f}", remark(found)], run)
    return table if table.rows else None


def warnings_table(tests: list[FinishedRun]) -> Table | None:
    """Reasons why some figures may be too high; None if there are none."""
    table = Table("Warnings", ["model", "evaluation", "why its figure may be too high"])
    for run in tests:
        for name, words in EVALUATIONS.items():
            for message in run.result.get(name, {}).get("warnings") or ():
                table.add([run.label, words, message], run)
    return table if table.rows else None


def training_table(trainings: list[FinishedRun]) -> Table:
    """One row for each trained model."""
    table = Table("Trained models", ["model", "steps", "training loss", "test accuracy", "seconds"])
    for run in trainings:
        final = run.result["final"]
        loss = "-" if final.get("train_loss") is None else f"{final['train_loss']:.4f}"
        seconds = f"{'over ' if run.result.get('resumed') else ''}{run.result['wall_seconds']:.1f}"
        table.add([run.label, str(run.result["steps"]), loss, rounded(final["test_accuracy"]), seconds], run)
    return table


def anchors_table(threats: list[FinishedRun]) -> Table:
    """One row for each choice of anchors."""
    header = ["anchors", "number", "per class", "lowest coverage, raw", "images left out", "median inscribed l2 radius"]
    table = Table("Choices of anchors", header)
    for run in threats:
        lowest = min(run.result["coverage"].values())
        counts = [str(run.result["num_anchors"]), str(run.result["per_label"])]
        radius = f"{run.result['inscribed_radius']['median']:.3g} t"
        table.add([run.label, *counts, rounded(lowest, 3), str(run.result["dropped"]["count"]), radius], run)
    return table


def separation_table(measurements: list[FinishedRun]) -> Table:
    """One row for each threat of each measurement."""
    shown = {title: key for title, key in COMPARISONS.items() if any(run.result.get(key) for run in measurements)}
    table = Table("Separation", ["threat", "anchors", *shown, "images"])
    table.note = (
        "AUROC of telling unsafe from safe changes, averaged over types of perturbation, with 95 % bootstrap intervals "
        "over images. Matched: pairs of one image whose l2 norms differ by at most 10 %. Directions: of d/||d||."
    )
    for run in measurements:
        for threat in run.result["threats"]:
            cells = [auroc(run.result.get(key, {}).get(threat)) for key in shown.values()]
            table.add([threat, run.label, *cells, str(run.result["num_examples"])], run)
    return table


def coverage_table(measurements: list[FinishedRun], tests: list[FinishedRun]) -> Table | None:
    """At equal coverage: what each set holds of the unsafe changes, and the accuracies of models inside it.

    A test counts that took its threshold from a measurement (--N_coverage) for the coverage of the headline.
    """
    covered = [run for run in measurements if run.result.get("coverage")]
    if not covered:
        return None
    # The same threshold, to six digits, is of the same measurement. A model may be tested with several radii.
    inside: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for run in tests:
        for metrics in (run.result.get(name, {}) for name in ("adv", "N_adv")):
            if metrics.get("coverage") == HEADLINE and run.split == "test":
                radius = "" if metrics["radius"] is None else f" (Linf <= {metrics['radius']:.4g})"
                of = (run.label, metrics["norm"], f"{metrics['threshold']:.6g}")
                inside[of].append(f"{rounded(metrics['accuracy'])}{radius}")
    models = list(dict.fromkeys(label for label, _, _ in inside))
    title = f"At equal coverage: sets that hold {HEADLINE:.0%} of the safe changes"
    table = Table(title, ["threat", "anchors", "threshold", "unsafe held", *(f"accuracy of {name}" for name in models)])
    table.note = (
        "Thresholds are found on training images; what sets hold is of test images, with 95 % bootstrap intervals over "
        f"both. Accuracies are of tests with --N_coverage={HEADLINE:g}, in the set and the pixel box."
    )
    for run in covered:
        for threat, levels in run.result["coverage"]["threats"].items():
            found = levels[f"{HEADLINE:g}"]
            held = f"{rounded(found['unsafe_held'], 3)} {between(found['low'], found['high'])}"
            threshold = f"{found['threshold']:.6g}"
            accuracies = (", ".join(inside.get((name, threat, threshold), ["-"])) for name in models)
            table.add([threat, run.label, f"{found['threshold']:.3g}", held, *accuracies], run)
    return table


def severity_table(run: FinishedRun) -> Table:
    """AUROC by severity of the safe changes."""
    levels = {f"severity {level}": found for level, found in run.result["separation_by_severity"].items()}
    return _parts_table(f"Separation by severity, {run.label}", levels, run)


def category_table(run: FinishedRun) -> Table:
    """AUROC by category of the safe changes."""
    return _parts_table(f"Separation by category, {run.label}", run.result.get("separation_by_category", {}), run)


def _parts_table(title: str, levels: dict[str, Any], run: FinishedRun) -> Table:
    """A row for each threat and a column for each part of the safe changes."""
    table = Table(title, ["threat", *levels])
    for threat in run.result["threats"]:
        table.add([threat, *(auroc(found.get(threat)) for found in levels.values())], run)
    return table


def perturbation_table(run: FinishedRun) -> Table:
    """Every safe perturbation, with the AUROC of each threat against the unsafe changes; lowest for PD first."""
    threats = [name for name in run.result["threats"] if "[" not in name]  # without variants of PD
    rises = run.result["rising"]
    table = Table(
        f"Separation by perturbation, {run.label}", ["perturbation", "category", *threats, "PD rises with severity"]
    )
    found = run.result["separation_by_perturbation"]
    categories = {row["perturbation"]: row.get("category", "-") for row in run.result["table"]}
    for name in sorted(found, key=lambda name: found[name][threats[0]]["auroc"]):
        rise = rises.get(name, {}).get(threats[0])
        told = (
            "-" if rise is None else ("yes" if rise["means_rise"] else f"no ({rounded(rise['rank_correlation'], 2)})")
        )
        aurocs = (rounded(found[name][threat]["auroc"], 3) for threat in threats)
        table.add([name, categories[name], *aurocs, told], run)
    table.note = "'no' gives the mean rank correlation of threat and severity within an image."
    return table


def responsible_table(run: FinishedRun) -> Table:
    """The perturbations, moves and anchors that cause the largest threats of safe changes."""
    found = run.result["responsible"]
    largest = f"The largest {percent(found['share'])} of safe threats"
    title = f"{largest} ({found['count']}, from PD {found['threat_from']:.2f})"
    table = Table(title, ["due to", "which", "times"])
    for kind in ("perturbations", "moves"):
        for name, times in found[kind].items():
            table.add([kind[:-1], name, str(times)], run)
    for anchor in found["anchors"]:
        table.add(["anchor", f"{anchor['class']}, training image {anchor['train_index']}", str(anchor["count"])], run)
    return table


def stability_table(run: FinishedRun) -> Table | None:
    """Agreement of PD with PD over other anchors; None if it was not measured."""
    if "stability" not in run.result:
        return None
    table = Table(f"Other anchors, {run.label}", ["anchors", "rank correlation with PD", "median ratio"])
    for name, found in run.result["stability"].items():
        table.add([name, rounded(found["rank_correlation"], 3), f"{found['median_ratio']:.3f}"], run)
    return table


def environment_table(runs: list[FinishedRun]) -> Table:
    """One column for every combination of machine and versions, with the number of its runs."""
    counts: dict[str, int] = {}
    for run in runs:
        key = json.dumps(run.result.get("environment", {}), sort_keys=True)
        counts[key] = counts.get(key, 0) + 1
    environments: list[dict[str, Any]] = [json.loads(key) for key in counts]
    table = Table("Environment and versions", ["what", *(f"{count} runs" for count in counts.values())])
    for fact in ("python", "platform", "device", "gpu", "precision", "deterministic", "world_size", "threads"):
        table.add([fact.replace("_", " "), *(str(made.get(fact, "-")) for made in environments)], None)
    for package in sorted({name for made in environments for name in made.get("packages", {})}):
        table.add([package, *(made.get("packages", {}).get(package) or "-" for made in environments)], None)
    return table


def auroc(metrics: dict[str, float] | None) -> str:
    """An AUROC with its interval, as text."""
    if not metrics:
        return "-"
    return f"{rounded(metrics['auroc'], 3)} {between(metrics['low'], metrics['high'])}"
