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
from foundations.modes import evaluation_mode
from foundations.testing_hparams import TestingHparams
from models.normalize import Classifier
from runners.base import Runner
from runners.checks import names_in
from runners.claims import digest_of
from runners.coverage import Form
from runners.inputs import check_masks, read_data, read_model, read_thresholds
from runners.test import corruptions, protocol, published, threats
from runners.test.evaluations import ENTRIES, PROOFS, WITH_WARNINGS
from runners.test.metrics import accuracies
from runners.test.pictures import Pictures
from runners.test.summary import MOVES
from runners.trackers import Trackers
from runners.train.desc import PretrainedDesc, TrainDesc
from testing.evaluations import refuse_no_answers
from testing.gradient_masking import masking_warnings
from testing.lockstep import InLockstep
from testing.shards import Shard, ShardStore, evaluate_in_shards
from threat_specification import ProjectedDisplacement
from threat_specification.attacks.base import NO_CLASS
from threat_specification.attacks.search import WRONG_WITHOUT
from threat_specification.perceptual import from_package
from training.network import distributed

PROBED = 50  # examples checked for signs of a misleading figure, such as gradient masking


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

    data: Dataset
    testing: TestingHparams  # with the thresholds that a coverage stands for
    model: Classifier
    threat: ProjectedDisplacement | None
    other_threat: ProjectedDisplacement | None
    evaluations: dict[str, Any]

    def prepare(self) -> None:
        self.trackers = Trackers(self.desc.tracking.names, self.desc, self.directory, self.environment)
        self.testing = self._with_thresholds()
        self.seed = derive_seed(self.desc.seed, self.desc.replicate, "test")
        self._read_threats()
        self.data = read_data(self.desc, self.environment)
        self.images, available = IMAGES[self.testing.split](self.data, self.desc.train)
        self._read_model(available[:1])
        self.index = self._index(available)
        if self.testing.protocol:
            self._check_protocol()
        baseline = self.desc.baseline
        self.baseline = corruptions.read_baseline(baseline, self.environment) if baseline else None
        self._build_evaluations()
        self.store = ShardStore(self.directory / "shards", math.inf if self.testing.save_adversarials else 1)

    def _read_threats(self) -> None:
        testing, environment = self.testing, self.environment
        anchors, others = self.desc.anchors, self.desc.train_anchors
        attacked = testing.N_adv_eval
        self.threat = threats.of_flags(testing, anchors, environment, testing.weighted) if attacked else None
        # Anchors of training have no weights but their own.
        self.other_threat = threats.of_flags(testing, others, environment, weighted=False) if others else None
        self.projected_onto = threats.projected_onto(testing, anchors, environment)
        named = names_in(testing.then_project_distances) if self.projected_onto else []
        self.distances = [from_package(name, environment.device) for name in named]

    def _read_model(self, first: torch.Tensor) -> None:
        """Read the model, and ask it about the image of one row."""
        environment = self.environment
        self.model = read_model(self.desc.train, self.desc.model, environment, self.data.info)
        self.model.check(self.images.pixels(first).to(environment.device), self.data.info.num_classes)
        if environment.world_size > 1 and any(weight.requires_grad for weight in self.model.parameters()):
            # Constructing the wrapper copies weights and buffers of the first process to all others. Attacks use the
            # model itself: no gradient is reduced, and the results stay the bits of one process.
            distributed(self.model, environment.device)

    def _index(self, available: torch.Tensor) -> torch.Tensor:
        """The rows to evaluate [n], of those available: without images for which a threat is not defined."""
        rows = self._chosen_rows(available)
        measured = [threat for threat in (self.threat, self.other_threat, *self.projected_onto.values()) if threat]
        check_masks(measured, self.images, "test" if self.testing.split == "test" else "training")
        index = rows[~threats.without_direction(measured, self.images, rows, self.data.info.shape)]
        self.num_excluded = len(rows) - len(index)
        if self.num_excluded:
            self.environment.log(f"left out: {self.num_excluded} images that equal an anchor of another class")
        return index

    def _build_evaluations(self) -> None:
        self.evaluations = {}
        for name, entry in ENTRIES.items():
            built = entry.build(self)
            if built is not None:
                self.evaluations[name] = built
        # Read at once: a layer that they cannot describe is told before the attacks begin.
        prepared = {name: proof.prepare(self) for name, proof in PROOFS.items()}
        self.prepared = {name: read for name, read in prepared.items() if read is not None}

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
        arrays = self._arrays()
        common = {"num_examples": len(self.index), "excluded": self.num_excluded}
        result: dict[str, Any] = {name: common | ENTRIES[name].metrics(self, arrays) for name in self.evaluations}
        result |= {name: common | PROOFS[name].metrics(self, arrays) for name in self.prepared}
        for name in self.prepared:
            del arrays[PROOFS[name].clock]
        published.add_leaderboard(self, result)
        if self.testing.protocol:
            result["protocol"] = self.testing.protocol
        result["saved_adversarials"] = self.testing.save_adversarials
        for name in WITH_WARNINGS:
            if name in result:
                # On every process, since anchors may be sharded over the processes.
                result[name]["warnings"] = self._suspicions(name, arrays)
        if self.environment.is_primary:
            self._write(arrays, result)
        self.trackers.start(0, [])
        self.trackers.finish(accuracies(result))
        return result

    def _arrays(self) -> dict[str, numpy.ndarray]:
        """One row for each example: of all evaluations in one pass, then of the proofs."""
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
                in_lockstep=self.is_lockstep,
            )
            for name in self.evaluations:
                ENTRIES[name].settle(self, arrays)
            for lost in self._without_answer(arrays):
                refuse_no_answers(torch.from_numpy(lost), self.index)
            for name, prepared in self.prepared.items():
                arrays |= PROOFS[name].arrays(self, prepared, arrays, split)
        return arrays

    def _write(self, arrays: dict[str, numpy.ndarray], result: dict[str, Any]) -> None:
        labels = self.images.labels[self.index].numpy()
        self.directory.write_examples({"index": self.index.numpy(), "label": labels, **arrays})
        inputs = (self.data.info, self.model, self.images, self.index, self.store)
        Pictures(self.directory, self.environment, self.testing, *inputs).write(list(self.evaluations))
        for name in self.evaluations:
            ENTRIES[name].write(self, arrays, result)

    @staticmethod
    def _without_answer(arrays: dict[str, numpy.ndarray]) -> Iterator[numpy.ndarray]:
        """[n] bool, for each evaluation: images for which the model has no answer without any attack."""
        if "standard_prediction" in arrays:
            yield arrays["standard_prediction"] == NO_CLASS
        for name in ("adv", "N_adv", MOVES):
            if f"{name}_no_answer" in arrays:
                yield arrays[f"{name}_no_answer"] & (arrays[f"{name}_broken_by"] == WRONG_WITHOUT)

    @property
    def is_lockstep(self) -> bool:
        """True if all processes evaluate the same examples together, since they share out the anchors."""
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
    def attacked_model(self) -> Any:
        """The model that attacks ask: the same answers on all processes where these share out the anchors."""
        together = self.is_lockstep and self.environment.world_size > 1
        return InLockstep(self.model) if together else self.model

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
