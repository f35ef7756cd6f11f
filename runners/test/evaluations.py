"""The evaluations of `test` by name: how each is built, its fields of result.json, and its files.

A new one is an entry here beside its own module. Evaluations share one pass over the images; proofs follow, since they
take what attacks broke.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

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
from runners.test.inputs import Inputs
from runners.test.metrics import ball_metrics, clean_metrics, gauge_csv, grid_csv, nonisotropic_metrics
from runners.test.summary import AUDIT, EXACT, MOVES, OTHER_ANCHORS
from runners.test.under_attack import in_ball, inside
from testing.certificates import CertificateEvaluation
from testing.corruptions import CorruptionEvaluation
from testing.evaluations import CleanEvaluation
from testing.exact_network import Network
from threat_specification.safe_moves.changes import parse

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

    build: Callable[[Inputs], Any]
    metrics: Callable[[Inputs, Arrays], Fields]
    write: Callable[[Inputs, Arrays, Fields], None] = lambda inputs, arrays, result: None
    settle: Callable[[Inputs, Arrays], None] = lambda inputs, arrays: None


@dataclass(frozen=True)
class Proof:
    """A pass of its own after the evaluations.

    prepare  -> what it proves about, read before attacks begin; None if the flags do not ask for it
    arrays   its arrays, given what was prepared, those of the evaluations, and the images
    metrics  its fields of result.json
    clock    the array of its times, which is not evidence and is not kept
    """

    prepare: Callable[[Inputs], Any]
    arrays: Callable[[Inputs, Any, Arrays, Examples], Arrays]
    metrics: Callable[[Inputs, Arrays], Fields]
    clock: str


def _corrupted(inputs: Inputs) -> CorruptionEvaluation | None:
    if not inputs.testing.corruption_eval:
        return None
    return CorruptionEvaluation(inputs.model, corruptions.chosen(inputs.testing, inputs.data, inputs.seed))


def _corruption_metrics(inputs: Inputs, arrays: Arrays) -> Fields:
    made = inputs.evaluations["corruption"].corruptions
    return corruptions.metrics(made, arrays, inputs.index.numpy(), inputs.baseline)


def _write_corruptions(inputs: Inputs, arrays: Arrays, result: Fields) -> None:
    """Write corruptions.csv and .png: accuracy by corruption and severity."""
    found, clean = result["corruption"], result.get("standard", {}).get("accuracy")
    write_text(inputs.directory / "corruptions.csv", corruptions.corruptions_csv(found, inputs.baseline))
    write_figure(inputs.directory / "corruptions.png", lambda: corruption_chart(found, clean, inputs.baseline))


def _in_ball(inputs: Inputs) -> Any:
    testing = inputs.testing
    if not testing.adv_eval:
        return None
    method, power = testing.then_project_method, testing.ball_power
    after = then_project.measures(inputs.attacked_model, inputs.projected_onto, power, method, inputs.distances)
    return in_ball(testing, inputs.attacked_model, inputs.data.info.num_classes, inputs.seed, after)


def _ball_metrics(inputs: Inputs, arrays: Arrays) -> Fields:
    fields = _coverage(inputs) | ball_metrics(inputs.evaluations["adv"], arrays)
    if not inputs.projected_onto:
        return fields
    names, distances = list(inputs.projected_onto), [measure.name for measure in inputs.distances]
    found = then_project.metrics(arrays, names, inputs.testing.ball_power, distances)
    return fields | published.with_table_3(inputs, found)


def _inside(inputs: Inputs) -> Any:
    if inputs.threat is None:
        return None
    measures: dict[str, Any] = {}
    if inputs.threat.name != "PD":  # PD itself, as a column beside another form of it
        plain = read_threat(inputs.desc.anchors, inputs.environment)
        measures["PD"] = lambda shard, perturbed: plain.evaluate(shard.images, shard.labels, perturbed)
    return inside(
        inputs.testing, inputs.attacked_model, inputs.threat, inputs.data.info.num_classes, inputs.seed, measures
    )


def _inside_metrics(inputs: Inputs, arrays: Arrays) -> Fields:
    attacked = inputs.evaluations["N_adv"]
    anchors = threats.anchors_name(attacked.threat, inputs.desc.anchors, inputs.testing)
    return _coverage(inputs) | nonisotropic_metrics(attacked, arrays, anchors, threats.unusual(inputs.testing))


def _write_curves(inputs: Inputs, arrays: Arrays, result: Fields) -> None:
    write_text(inputs.directory / "grid.csv", grid_csv(result["N_adv"]))
    write_text(inputs.directory / "gauge_curve.csv", gauge_csv(result["N_adv"]))
    write_figure(inputs.directory / "curves.png", lambda: gauge_curves([(inputs.desc.name, result)]))
    if inputs.testing.N_radii:
        write_figure(inputs.directory / "radius_curves.png", lambda: radius_curves(result["N_adv"]))


def _with_other_anchors(inputs: Inputs) -> Any:
    if inputs.other_threat is None:
        return None
    attacked = inputs.evaluations["N_adv"]
    return replace(attacked, threat=inputs.other_threat, measures={}, prefix=OTHER_ANCHORS, keep_all=False)


def _other_metrics(inputs: Inputs, arrays: Arrays) -> Fields:
    """Without a coverage: nobody measured that of these anchors."""
    attacked, others = inputs.evaluations[OTHER_ANCHORS], inputs.desc.train_anchors
    assert others is not None
    anchors = threats.anchors_name(attacked.threat, others, inputs.testing)
    return nonisotropic_metrics(attacked, arrays, anchors, threats.unusual(inputs.testing))


def _in_moves(inputs: Inputs) -> Any:
    if inputs.threat is None or not inputs.testing.safe_moves:
        return None
    return moves.evaluation(inputs.evaluations["N_adv"], parse(inputs.testing.safe_moves))


def _moves_metrics(inputs: Inputs, arrays: Arrays) -> Fields:
    alone, names = _inside_metrics(inputs, arrays), names_in(inputs.testing.safe_moves)
    return _coverage(inputs) | moves.metrics(inputs.evaluations[MOVES], arrays, alone, names)


def _add_noise_alone(inputs: Inputs, arrays: Arrays) -> None:
    moves.add_noise_alone(arrays, inputs.evaluations["N_adv"], inputs.evaluations[MOVES])


def _audited(inputs: Inputs) -> Any:
    if inputs.threat is None or not inputs.testing.audit:
        return None
    return audit.evaluation(inputs.evaluations["N_adv"], inputs.testing.audit_attacks, inputs.data.info.num_classes)


def _write_audit(inputs: Inputs, arrays: Arrays, result: Fields) -> None:
    found, best = inputs.evaluations[AUDIT], result[AUDIT]["best"]
    write_figure(inputs.directory / "audit.png", lambda: audit.audit_chart(found, arrays, best))


def _coverage(inputs: Inputs) -> Fields:
    """The share of safe changes that the set holds, where a threshold was found for it."""
    return {"coverage": inputs.testing.N_coverage} if inputs.testing.N_coverage else {}


ENTRIES: dict[str, Entry] = {
    "standard": Entry(
        build=lambda inputs: CleanEvaluation(inputs.model) if inputs.testing.standard_eval else None,
        metrics=lambda inputs, arrays: clean_metrics(arrays),
    ),
    "corruption": Entry(_corrupted, _corruption_metrics, _write_corruptions),
    "adv": Entry(_in_ball, _ball_metrics),
    "N_adv": Entry(_inside, _inside_metrics, _write_curves),
    OTHER_ANCHORS: Entry(_with_other_anchors, _other_metrics),
    MOVES: Entry(_in_moves, _moves_metrics, settle=_add_noise_alone),
    AUDIT: Entry(_audited, lambda inputs, arrays: audit.metrics(inputs.evaluations[AUDIT], arrays), _write_audit),
}
WITH_WARNINGS = ("adv", "N_adv", MOVES)  # evaluations under attack whose figures are probed for being too high


def _exact_answers(inputs: Inputs, network: Network, arrays: Arrays, images: Examples) -> Arrays:
    evaluation = exact.ExactEvaluation(inputs.evaluations["N_adv"], network, inputs.testing.exact_seconds)
    return exact.evaluate(evaluation, arrays, images, inputs.index, inputs.environment, inputs.directory)


def _certificates(inputs: Inputs, certifier: CertificateEvaluation, arrays: Arrays, images: Examples) -> Arrays:
    """The certificates; raises RunError for one of an example that is broken in the same set."""
    size, lockstep = inputs.testing.shard_size, inputs.is_lockstep
    found = certified.evaluate(
        certifier, images, inputs.index, size, inputs.environment, inputs.directory, in_lockstep=lockstep
    )
    certified.refuse_contradictions(arrays | found, inputs.evaluations, inputs.index.numpy())
    return found


def _network(inputs: Inputs) -> Network | None:
    asked = inputs.testing.N_adv_eval and inputs.testing.exact_eval
    return Network.read(inputs.model, inputs.data.info.shape) if asked else None


def _certifier(inputs: Inputs) -> CertificateEvaluation | None:
    asked = inputs.testing.N_adv_eval and inputs.testing.certify
    return CertificateEvaluation.of(inputs.evaluations["N_adv"], inputs.model) if asked else None


def _exact_metrics(inputs: Inputs, arrays: Arrays) -> Fields:
    return exact.metrics(inputs.evaluations["N_adv"], arrays)


def _certified_metrics(inputs: Inputs, arrays: Arrays) -> Fields:
    return certified.metrics(inputs.evaluations["N_adv"], arrays, inputs.desc.has_certified_training)


# In this order: certificates are compared with exact answers.
PROOFS: dict[str, Proof] = {
    EXACT: Proof(_network, _exact_answers, _exact_metrics, exact.CLOCK),
    CERTIFIED: Proof(_certifier, _certificates, _certified_metrics, certified.CLOCK),
}
