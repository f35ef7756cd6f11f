"""The evaluations of `test` by name: how each is built, its fields of result.json, and its files.

A new one is an entry here beside its own module. Evaluations share one pass over the images; proofs follow, since they
take what attacks broke.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy

from datasets.base import Examples
from foundations.files import write_text
from runners.checks import names_in
from runners.inputs import read_threat
from runners.plots import write_figure
from runners.report.charts import gauge_curves, radius_curves
from runners.test import audit, certified, corruptions, exact, moves, published, then_project, threats
from runners.test.bracket import CERTIFIED
from runners.test.corruption_chart import corruption_chart
from runners.test.metrics import ball_metrics, clean_metrics, gauge_csv, grid_csv, nonisotropic_metrics
from runners.test.summary import AUDIT, EXACT, MOVES, OTHER_ANCHORS
from runners.test.under_attack import in_ball, inside
from testing.certificates import CertificateEvaluation
from testing.corruptions import CorruptionEvaluation
from testing.evaluations import CleanEvaluation
from testing.exact_network import Network
from threat_specification.safe_moves.changes import parse

if TYPE_CHECKING:
    from runners.test.runner import Test

Arrays = dict[str, numpy.ndarray]
Fields = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """An evaluation of `test`.

    build    -> the evaluation; None if the flags do not ask for it. Those of the entries before are built already
    metrics  its fields of result.json, given the arrays of all evaluations and proofs
    write    its files, given these arrays and the whole result
    settle   changes the arrays of all evaluations, before anything reads them
    """

    build: Callable[[Test], Any]
    metrics: Callable[[Test, Arrays], Fields]
    write: Callable[[Test, Arrays, Fields], None] = lambda test, arrays, result: None
    settle: Callable[[Test, Arrays], None] = lambda test, arrays: None


@dataclass(frozen=True)
class Proof:
    """A pass of its own after the evaluations.

    prepare  -> what it proves about, read before attacks begin; None if the flags do not ask for it
    arrays   its arrays, given what was prepared, those of the evaluations, and the images
    metrics  its fields of result.json
    clock    the array of its times, which is not evidence and is not kept
    """

    prepare: Callable[[Test], Any]
    arrays: Callable[[Test, Any, Arrays, Examples], Arrays]
    metrics: Callable[[Test, Arrays], Fields]
    clock: str


def _corrupted(test: Test) -> CorruptionEvaluation | None:
    if not test.testing.corruption_eval:
        return None
    return CorruptionEvaluation(test.model, corruptions.chosen(test.testing, test.data, test.seed))


def _corruption_metrics(test: Test, arrays: Arrays) -> Fields:
    made = test.evaluations["corruption"].corruptions
    return corruptions.metrics(made, arrays, test.index.numpy(), test.baseline)


def _write_corruptions(test: Test, arrays: Arrays, result: Fields) -> None:
    """Write corruptions.csv and .png: accuracy by corruption and severity."""
    found, clean = result["corruption"], result.get("standard", {}).get("accuracy")
    write_text(test.directory / "corruptions.csv", corruptions.corruptions_csv(found, test.baseline))
    write_figure(test.directory / "corruptions.png", lambda: corruption_chart(found, clean, test.baseline))


def _in_ball(test: Test) -> Any:
    testing = test.testing
    if not testing.adv_eval:
        return None
    method, power = testing.then_project_method, testing.ball_power
    after = then_project.measures(test.attacked_model, test.projected_onto, power, method, test.distances)
    return in_ball(testing, test.attacked_model, test.data.info.num_classes, test.seed, after)


def _ball_metrics(test: Test, arrays: Arrays) -> Fields:
    fields = _coverage(test) | ball_metrics(test.evaluations["adv"], arrays)
    if not test.projected_onto:
        return fields
    names, distances = list(test.projected_onto), [measure.name for measure in test.distances]
    found = then_project.metrics(arrays, names, test.testing.ball_power, distances)
    return fields | published.with_table_3(test, found)


def _inside(test: Test) -> Any:
    if test.threat is None:
        return None
    measures: dict[str, Any] = {}
    if test.threat.name != "PD":  # PD itself, as a column beside another form of it
        plain = read_threat(test.desc.anchors, test.environment)
        measures["PD"] = lambda shard, perturbed: plain.evaluate(shard.images, shard.labels, perturbed)
    return inside(test.testing, test.attacked_model, test.threat, test.data.info.num_classes, test.seed, measures)


def _inside_metrics(test: Test, arrays: Arrays) -> Fields:
    attacked = test.evaluations["N_adv"]
    anchors = threats.anchors_name(attacked.threat, test.desc.anchors, test.testing)
    return _coverage(test) | nonisotropic_metrics(attacked, arrays, anchors, threats.unusual(test.testing))


def _write_curves(test: Test, arrays: Arrays, result: Fields) -> None:
    write_text(test.directory / "grid.csv", grid_csv(result["N_adv"]))
    write_text(test.directory / "gauge_curve.csv", gauge_csv(result["N_adv"]))
    write_figure(test.directory / "curves.png", lambda: gauge_curves([(test.desc.name, result)]))
    if test.testing.N_radii:
        write_figure(test.directory / "radius_curves.png", lambda: radius_curves(result["N_adv"]))


def _with_other_anchors(test: Test) -> Any:
    if test.other_threat is None:
        return None
    attacked = test.evaluations["N_adv"]
    return replace(attacked, threat=test.other_threat, measures={}, prefix=OTHER_ANCHORS, keep_all=False)


def _other_metrics(test: Test, arrays: Arrays) -> Fields:
    """Without a coverage: nobody measured that of these anchors."""
    attacked = test.evaluations[OTHER_ANCHORS]
    anchors = threats.anchors_name(attacked.threat, test.desc.train_anchors, test.testing)
    return nonisotropic_metrics(attacked, arrays, anchors, threats.unusual(test.testing))


def _in_moves(test: Test) -> Any:
    if test.threat is None or not test.testing.safe_moves:
        return None
    return moves.evaluation(test.evaluations["N_adv"], parse(test.testing.safe_moves))


def _moves_metrics(test: Test, arrays: Arrays) -> Fields:
    alone, names = _inside_metrics(test, arrays), names_in(test.testing.safe_moves)
    return _coverage(test) | moves.metrics(test.evaluations[MOVES], arrays, alone, names)


def _audited(test: Test) -> Any:
    if test.threat is None or not test.testing.audit:
        return None
    return audit.evaluation(test.evaluations["N_adv"], test.testing.audit_attacks, test.data.info.num_classes)


def _write_audit(test: Test, arrays: Arrays, result: Fields) -> None:
    found, best = test.evaluations[AUDIT], result[AUDIT]["best"]
    write_figure(test.directory / "audit.png", lambda: audit.audit_chart(found, arrays, best))


def _coverage(test: Test) -> Fields:
    """The share of safe changes that the set holds, where a threshold was found for it."""
    return {"coverage": test.testing.N_coverage} if test.testing.N_coverage else {}


ENTRIES: dict[str, Entry] = {
    "standard": Entry(
        build=lambda test: CleanEvaluation(test.model) if test.testing.standard_eval else None,
        metrics=lambda test, arrays: clean_metrics(arrays),
    ),
    "corruption": Entry(_corrupted, _corruption_metrics, _write_corruptions),
    "adv": Entry(_in_ball, _ball_metrics),
    "N_adv": Entry(_inside, _inside_metrics, _write_curves),
    OTHER_ANCHORS: Entry(_with_other_anchors, _other_metrics),
    MOVES: Entry(
        _in_moves,
        _moves_metrics,
        settle=lambda test, arrays: moves.add_noise_alone(arrays, test.evaluations["N_adv"], test.evaluations[MOVES]),
    ),
    AUDIT: Entry(_audited, lambda test, arrays: audit.metrics(test.evaluations[AUDIT], arrays), _write_audit),
}
WITH_WARNINGS = ("adv", "N_adv", MOVES)  # evaluations under attack whose figures are probed for being too high


def _exact_answers(test: Test, network: Network, arrays: Arrays, images: Examples) -> Arrays:
    evaluation = exact.ExactEvaluation(test.evaluations["N_adv"], network, test.testing.exact_seconds)
    return exact.evaluate(evaluation, arrays, images, test.index, test.environment, test.directory)


def _certificates(test: Test, certifier: CertificateEvaluation, arrays: Arrays, images: Examples) -> Arrays:
    """The certificates; raises RunError for one of an example that is broken in the same set."""
    size, lockstep = test.testing.shard_size, test.is_lockstep
    found = certified.evaluate(
        certifier, images, test.index, size, test.environment, test.directory, in_lockstep=lockstep
    )
    certified.refuse_contradictions(arrays | found, test.evaluations, test.index.numpy())
    return found


# In this order: certificates are compared with exact answers.
PROOFS: dict[str, Proof] = {
    EXACT: Proof(
        prepare=lambda test: (
            Network.read(test.model, test.data.info.shape) if test.threat and test.testing.exact_eval else None
        ),
        arrays=_exact_answers,
        metrics=lambda test, arrays: exact.metrics(test.evaluations["N_adv"], arrays),
        clock=exact.CLOCK,
    ),
    CERTIFIED: Proof(
        prepare=lambda test: (
            CertificateEvaluation.of(test.evaluations["N_adv"], test.model)
            if test.threat and test.testing.certify
            else None
        ),
        arrays=_certificates,
        metrics=lambda test, arrays: certified.metrics(
            test.evaluations["N_adv"], arrays, test.desc.has_certified_training
        ),
        clock=certified.CLOCK,
    ),
}
