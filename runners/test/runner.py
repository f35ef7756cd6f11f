"""The test runner: measure a model's accuracy on clean images, and under isotropic and nonisotropic attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy
import torch

from datasets.base import Dataset, Examples
from datasets.sampling import held_out, stratified_subset
from foundations.desc import StoredRun, derive_seed
from foundations.errors import UsageError
from foundations.files import write_text
from foundations.modes import evaluation_mode
from foundations.testing_hparams import TestingHparams
from models.robustbench_registry import PUBLISHED_POWER
from models.sources import zoo_entry
from runners.base import Runner
from runners.checks import names_in
from runners.claims import digest_of
from runners.coverage import Form
from runners.inputs import check_masks, read_data, read_model, read_threat, read_thresholds
from runners.plots import write_figure
from runners.report.charts import gauge_curves, radius_curves
from runners.test import audit, certified, corruptions, exact, moves, protocol, then_project, threats
from runners.test.bracket import CERTIFIED
from runners.test.corruption_chart import corruption_chart
from runners.test.desc import AUDIT, EXACT, MOVES, OTHER_ANCHORS
from runners.test.metrics import accuracies, ball_metrics, clean_metrics, gauge_csv, grid_csv, nonisotropic_metrics
from runners.test.pictures import Pictures
from runners.test.under_attack import in_ball, inside
from runners.trackers import Trackers
from runners.train.desc import PretrainedDesc, TrainDesc
from testing.certificates import CertificateEvaluation
from testing.corruptions import CorruptionEvaluation
from testing.evaluations import CleanEvaluation, refuse_no_answers
from testing.exact_network import Network
from testing.gradient_masking import masking_warnings
from testing.lockstep import InLockstep
from testing.shards import Shard, ShardStore, evaluate_in_shards
from threat_specification import ProjectedDisplacement
from threat_specification.attacks.base import NO_CLASS
from threat_specification.attacks.search import WRONG_WITHOUT
from threat_specification.perceptual import from_package
from threat_specification.safe_moves.changes import parse
from training.network import distributed

PROBED = 50  # examples checked for signs of a misleading figure, such as gradient masking


def same_radius(given: float, published: float) -> bool:
    """True if a radius is the published one, also if people wrote it with a few digits (0.0627 for 16/255)."""
    return math.isclose(given, published, rel_tol=1e-3)


def _test_images(data: Dataset, train: TrainDesc | PretrainedDesc | StoredRun) -> tuple[Examples, torch.Tensor]:
    return data.test, torch.arange(len(data.test))


def _validation_images(data: Dataset, train: TrainDesc | PretrainedDesc | StoredRun) -> tuple[Examples, torch.Tensor]:
    """The images that the training of the model under test held out."""
    hashed = train.content["hashed"] if isinstance(train, StoredRun) else train.hashed()
    rows = held_out(data.train.labels, hashed.get("training", {}).get("validation_fraction", 0), hashed.get("seed", 0))
    if not len(rows):
        raise UsageError("--split=validation: expected a model that was trained with --validation_fraction above 0")
    return data.train, rows


# --split -> images, and the rows to evaluate. Rows keep their original numbers, by which masks are indexed.
IMAGES: dict[str, Callable[..., tuple[Examples, torch.Tensor]]] = {
    "test": _test_images,
    "validation": _validation_images,
}


class Test(Runner):
    """A runner that writes examples.npz (one row for each example), strip.png, and curves as CSV.

    A finished shard is kept in shards/ until the result is written, so that an interrupted run continues with the next
    shard.
    """

    __test__ = False  # not a test case, although pytest would collect a class of this name

    def prepare(self) -> None:
        environment = self.environment
        self.trackers = Trackers(self.desc.tracking.names, self.desc, self.directory, environment)
        self.testing = testing = self._with_thresholds()
        self.seed = derive_seed(self.desc.seed, self.desc.replicate, "test")
        anchors, others = self.desc.anchors, self.desc.train_anchors
        attacked = testing.N_adv_eval
        self.threat = threats.of_flags(testing, anchors, environment, testing.weighted) if attacked else None
        # Anchors of training have no weights but their own.
        self.other_threat = threats.of_flags(testing, others, environment, weighted=False) if others else None
        self.projected_onto = threats.projected_onto(testing, anchors, environment)
        named = names_in(testing.then_project_distances) if self.projected_onto else []
        self.distances = [from_package(name, environment.device) for name in named]
        self.data = read_data(self.desc, environment)
        self.images, available = IMAGES[self.testing.split](self.data, self.desc.train)
        self.model = read_model(self.desc.train, self.desc.model, environment, self.data.info)
        self.model.check(self.images.pixels(available[:1]).to(environment.device), self.data.info.num_classes)
        if environment.world_size > 1 and any(weight.requires_grad for weight in self.model.parameters()):
            # Constructing the wrapper copies weights and buffers of the first process to all others. Attacks use the
            # model itself: no gradient is reduced, and the results stay the bits of one process.
            distributed(self.model, environment.device)
        rows = self._chosen_rows(available)
        measured = [threat for threat in (self.threat, self.other_threat, *self.projected_onto.values()) if threat]
        check_masks(measured, self.images, "test" if testing.split == "test" else "training")
        self.index = rows[~threats.without_direction(measured, self.images, rows, self.data.info.shape)]
        self.num_excluded = len(rows) - len(self.index)
        if self.num_excluded:
            environment.log(f"left out: {self.num_excluded} images that equal an anchor of another class")
        if testing.protocol:
            self._check_protocol()
        self.baseline = corruptions.read_baseline(self.desc.baseline, environment) if self.desc.baseline else None
        self.evaluations = self._evaluations()
        # Read at once: a layer that it cannot describe is told before the attacks begin.
        asked = testing.N_adv_eval and testing.exact_eval
        self.network = Network.read(self.model, self.data.info.shape) if asked else None
        asked = testing.N_adv_eval and testing.certify
        self.certifier = CertificateEvaluation.of(self.evaluations["N_adv"], self.model) if asked else None
        pictures_of = math.inf if testing.save_adversarials else 1
        self.store = ShardStore(self.directory / "shards", pictures_of)

    def _check_protocol(self) -> None:
        """Raise RunError if the anchors or the images are not those of the protocol."""
        name = self.testing.protocol
        assert self.threat is not None and self.threat.anchors is not None
        found = {
            "anchors": self.threat.anchors.digest,
            "images": protocol.rows_digest(self.index.tolist()),
            "pixels": digest_of(self.data.test, self.index)[:12],
        }
        unknown = protocol.check_inputs(name, self.desc.dataset_name, found)
        if unknown:
            told = ", ".join(f"{what} {found[what]}" for what in unknown)
            self.environment.log(f"note: {name} has no digests of {self.desc.dataset_name} yet; here they are: {told}")

    def _with_thresholds(self) -> TestingHparams:
        """The flags of the evaluation, with the thresholds that --N_coverage stands for."""
        testing = self.desc.testing
        if self.desc.coverage is None:
            return testing
        names = {"N_threshold": Form.of_test(testing).name} if testing.N_adv_eval else {}
        names |= {"adv_test_attack_power": testing.adv_test_attack_norm} if testing.adv_eval else {}
        found = read_thresholds(self.desc.coverage, self.environment, ("N_coverage", testing.N_coverage), names)
        return replace(testing, **found)

    def run(self) -> dict[str, Any]:
        split = self.images.to(self.environment.device)
        with evaluation_mode(self.model):
            arrays = evaluate_in_shards(
                split.pixels,
                split.labels,
                self.index.to(self.environment.device),
                self.testing.shard_size,
                list(self.evaluations.values()),
                self.environment,
                self.store,
                in_lockstep=self._is_lockstep(),
            )
        if MOVES in self.evaluations:
            moves.add_noise_alone(arrays, self.evaluations["N_adv"], self.evaluations[MOVES])
        for lost in self._without_answer(arrays):
            refuse_no_answers(torch.from_numpy(lost), self.index)
        if self.network is not None:
            arrays |= self._exact(self.network, arrays, split)
        if self.certifier is not None:
            arrays |= self._certified(self.certifier, arrays, split)
        result: dict[str, Any] = {name: self._metrics(name, arrays) for name in self.evaluations}
        if self.network is not None:
            result[EXACT] = {"num_examples": len(self.index), "excluded": self.num_excluded}
            result[EXACT] |= exact.metrics(self.evaluations["N_adv"], arrays)
            del arrays[exact.CLOCK]
        if self.certifier is not None:
            result[CERTIFIED] = {"num_examples": len(self.index), "excluded": self.num_excluded}
            result[CERTIFIED] |= certified.metrics(self.evaluations["N_adv"], arrays, self.desc.has_certified_training)
            del arrays[certified.CLOCK]
        self._add_published(result)
        if self.testing.protocol:
            result["protocol"] = self.testing.protocol
        result["saved_adversarials"] = self.testing.save_adversarials
        for name in ("adv", "N_adv", MOVES):
            if name in result:
                # On every process, since anchors may be sharded over the processes.
                result[name]["warnings"] = self._suspicions(name, arrays)
        if self.environment.is_primary:
            labels = self.images.labels[self.index].numpy()
            self.directory.write_examples({"index": self.index.numpy(), "label": labels, **arrays})
            Pictures(
                self.directory,
                self.environment,
                self.testing,
                self.data.info,
                self.model,
                self.images,
                self.index,
                self.store,
            ).write(list(self.evaluations))
            if "corruption" in result:
                self._write_corruptions(result)
            if AUDIT in result:
                found, best = self.evaluations[AUDIT], result[AUDIT]["best"]
                write_figure(self.directory / "audit.png", lambda: audit.audit_chart(found, arrays, best))
            if "N_adv" in result:
                write_text(self.directory / "grid.csv", grid_csv(result["N_adv"]))
                write_text(self.directory / "gauge_curve.csv", gauge_csv(result["N_adv"]))
                write_figure(self.directory / "curves.png", lambda: gauge_curves([(self.desc.name, result)]))
                if self.testing.N_radii:
                    write_figure(self.directory / "radius_curves.png", lambda: radius_curves(result["N_adv"]))
        self.trackers.start(0, [])
        self.trackers.finish(accuracies(result))
        return result

    def _exact(self, network: Network, arrays: dict[str, numpy.ndarray], split: Examples) -> dict[str, numpy.ndarray]:
        attacked = exact.ExactEvaluation(self.evaluations["N_adv"], network, self.testing.exact_seconds)
        with evaluation_mode(self.model):
            return exact.evaluate(attacked, arrays, split, self.index, self.environment, self.directory)

    def _certified(
        self, certifier: CertificateEvaluation, arrays: dict[str, numpy.ndarray], split: Examples
    ) -> dict[str, numpy.ndarray]:
        """The certificates; raises RunError for one of an example that is broken in the same set."""
        size, lockstep = self.testing.shard_size, self._is_lockstep()
        with evaluation_mode(self.model):
            found = certified.evaluate(
                certifier, split, self.index, size, self.environment, self.directory, in_lockstep=lockstep
            )
        certified.refuse_contradictions(arrays | found, self.evaluations, self.index.numpy())
        return found

    @staticmethod
    def _without_answer(arrays: dict[str, numpy.ndarray]) -> Iterator[numpy.ndarray]:
        """[n] bool, for each evaluation: images for which the model has no answer without any attack."""
        if "standard_prediction" in arrays:
            yield arrays["standard_prediction"] == NO_CLASS
        for name in ("adv", "N_adv", MOVES):
            if f"{name}_no_answer" in arrays:
                yield arrays[f"{name}_no_answer"] & (arrays[f"{name}_broken_by"] == WRONG_WITHOUT)

    def _add_published(self, result: dict[str, Any]) -> None:
        """Add the accuracies that RobustBench published, if it measured the model of the zoo in the same way."""
        entry = zoo_entry(self.desc.model, self.desc.dataset_name)
        if entry is None or not isinstance(self.desc.train, PretrainedDesc):
            return
        if entry.preprocessing not in (None, "Res256Crop224"):
            self.environment.log(f"note: RobustBench measured {entry.name} on images prepared by {entry.preprocessing}")
        if "standard" in result:
            result["standard"]["published"] = entry.clean
        if "corruption" in result:
            result["corruption"] |= corruptions.published(entry, result["corruption"]["by_corruption"])
        testing = self.testing
        power = PUBLISHED_POWER.get((entry.dataset_name, testing.adv_test_attack_norm))
        same = testing.adv_test_attack_norm == entry.threat_model and testing.adv_test_attack_type == "auto"
        if "adv" in result and same and power is not None and same_radius(result["adv"]["threshold"], power):
            result["adv"]["published"] = entry.robust

    def _is_lockstep(self) -> bool:
        measured = self.threat is not None or bool(self.projected_onto)
        return measured and self.desc.anchors.threat.shard_anchors

    def _chosen_rows(self, rows: torch.Tensor) -> torch.Tensor:
        testing, total = self.testing, len(rows)
        if testing.num_examples > total:
            asked = testing.num_examples
            raise UsageError(f"--num_examples: expected at most {total}, the {testing.split} images, got {asked}")
        if testing.num_examples:
            rows = rows[stratified_subset(self.images.labels[rows], testing.num_examples, self.seed)]
        return rows[: testing.shard_size] if testing.evaluate_only_batch_test else rows

    @property
    def _attacked(self) -> Any:
        """The model that attacks ask: the same answers on all processes where these share out the anchors."""
        together = self._is_lockstep() and self.environment.world_size > 1
        return InLockstep(self.model) if together else self.model

    def _evaluations(self) -> dict[str, Any]:
        """The evaluations that were asked for, by their names in result.json."""
        testing, classes = self.testing, self.data.info.num_classes
        evaluations: dict[str, Any] = {}
        if testing.standard_eval:
            evaluations["standard"] = CleanEvaluation(self.model)
        if testing.corruption_eval:
            evaluations["corruption"] = CorruptionEvaluation(
                self.model, corruptions.chosen(testing, self.data, self.seed)
            )
        if testing.adv_eval:
            after = then_project.measures(
                self._attacked,
                self.projected_onto,
                testing.ball_power,
                testing.then_project_method,
                self.distances,
            )
            evaluations["adv"] = in_ball(testing, self._attacked, classes, self.seed, after)
        if self.threat is not None:
            measures = self._measures(self.threat)
            evaluations["N_adv"] = inside(testing, self._attacked, self.threat, classes, self.seed, measures)
        if self.other_threat is not None:
            evaluations[OTHER_ANCHORS] = replace(
                evaluations["N_adv"], threat=self.other_threat, measures={}, prefix=OTHER_ANCHORS, keep_all=False
            )
        if self.threat is not None and self.testing.safe_moves:
            changes = parse(self.testing.safe_moves)
            evaluations[MOVES] = moves.evaluation(evaluations["N_adv"], changes)
        if self.threat is not None and testing.audit:
            evaluations[AUDIT] = audit.evaluation(evaluations["N_adv"], testing.audit_attacks, classes)
        return evaluations

    def _measures(self, threat: ProjectedDisplacement) -> dict[str, Any]:
        """PD itself, as a column beside another form of it."""
        if threat.name == "PD":
            return {}
        plain = read_threat(self.desc.anchors, self.environment)
        return {"PD": lambda shard, perturbed: plain.evaluate(shard.images, shard.labels, perturbed)}

    def _metrics(self, name: str, arrays: dict[str, numpy.ndarray]) -> dict[str, Any]:
        """The fields of result.json for one evaluation."""
        evaluation = self.evaluations[name]
        common: dict[str, Any] = {"num_examples": len(self.index), "excluded": self.num_excluded}
        if name == "standard":
            return common | clean_metrics(arrays)
        if name == "corruption":
            return common | corruptions.metrics(evaluation.corruptions, arrays, self.index.numpy(), self.baseline)
        if name == AUDIT:
            return common | audit.metrics(evaluation, arrays)
        if self.testing.N_coverage and name != OTHER_ANCHORS:  # nobody measured the coverage of those
            common["coverage"] = self.testing.N_coverage
        if name == MOVES:
            alone = self._metrics("N_adv", arrays)
            return common | moves.metrics(evaluation, arrays, alone, names_in(self.testing.safe_moves))
        if name == "adv":
            return common | ball_metrics(evaluation, arrays) | self._after_projection(arrays)
        desc = self.desc.anchors if name == "N_adv" else self.desc.train_anchors
        return common | nonisotropic_metrics(
            evaluation,
            arrays,
            threats.anchors_name(evaluation.threat, desc, self.testing),
            threats.unusual(self.testing),
        )

    def _after_projection(self, arrays: dict[str, numpy.ndarray]) -> dict[str, Any]:
        """The accuracies of --then_project, beside the published ones of the same model and radius."""
        if not self.projected_onto:
            return {}
        power = self.testing.ball_power
        found: dict[str, Any] = then_project.metrics(
            arrays, list(self.projected_onto), power, [measure.name for measure in self.distances]
        )
        if isinstance(self.desc.train, PretrainedDesc) and same_radius(power, then_project.PUBLISHED_POWER):
            published = then_project.PUBLISHED.get(self.desc.model_name, {})
            found = {name: {**of, "published": published.get(name)} for name, of in found.items()}
            return {"then_project": found, "published_then_project": published.get("Linf")}
        return {"then_project": found}

    def _suspicions(self, name: str, arrays: dict[str, numpy.ndarray]) -> list[str]:
        """Sentences on why a figure under attack may be too high."""
        rows = slice(0, min(PROBED, self.testing.shard_size))
        split, index = self.images.to(self.environment.device), self.index[rows].to(self.environment.device)
        shard = Shard(0, split.pixels(index), split.labels[index], index)
        robust = torch.from_numpy(arrays[f"{name}_correct"][rows]).to(self.environment.device)
        with evaluation_mode(self.model):
            of_all = (arrays[f"{name}_broken_by"], arrays[f"{name}_no_answer"], arrays.get(f"{name}_scaled"))
            told = masking_warnings(self.evaluations[name], shard, robust, *of_all)
        for message in told:
            self.environment.log(f"warning: {message}")
        return told

    def _write_corruptions(self, result: dict[str, Any]) -> None:
        """Write corruptions.csv and .png: accuracy by corruption and severity."""
        found, clean = result["corruption"], result.get("standard", {}).get("accuracy")
        write_text(self.directory / "corruptions.csv", corruptions.corruptions_csv(found, self.baseline))
        write_figure(self.directory / "corruptions.png", lambda: corruption_chart(found, clean, self.baseline))
