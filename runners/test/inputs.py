"""The inputs of a test run: data, model and threats, read before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from datasets.base import Dataset, Examples
from datasets.sampling import held_out, stratified_subset
from foundations.desc import StoredRun, derive_seed
from foundations.environment import Environment
from foundations.errors import RunError, UsageError
from foundations.run_directory import RunDirectory
from foundations.testing_hparams import TestingHparams
from runners.checks import names_in
from runners.claims import digest_of
from runners.coverage import Form
from runners.inputs import check_masks, read_data, read_model, with_thresholds
from runners.test import corruptions, protocol, threats
from runners.test.desc import TestDesc
from runners.train.desc import PretrainedDesc, TrainDesc
from runners.undefined import left_of, without_direction, without_object
from testing.lockstep import InLockstep
from threat_specification.perceptual import from_package
from training.network import distributed


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


# --background -> the safe changes that a set of PD-S holds, of those below its threshold.
HELD = {
    "frozen": "leave the background as it is",
    "radius": "stay within --N_radius",
    "free": "stay within --N_radius inside the mask",
}


class Inputs:
    """The inputs of a test run; an error for what cannot be evaluated.

    testing      flags of the evaluation, with the thresholds that --N_coverage stands for
    threat, other_threat, projected_onto   of --N_adv_eval, the same over the anchors of training, and of --then_project
    data, images the data set, and its split under test
    index        [n] rows of the split to evaluate; num_excluded   how many a threat is not defined for
    baseline     corruption accuracies of the model that mCE is relative to
    evaluations  those built so far, by name
    """

    def __init__(self, desc: TestDesc, directory: RunDirectory, environment: Environment) -> None:
        self.desc, self.directory, self.environment = desc, directory, environment
        self.testing = self._with_thresholds()
        self.seed = derive_seed(desc.seed, desc.replicate, "test")
        self._read_threats()
        self.data: Dataset = read_data(desc, environment)
        self.images, available = IMAGES[self.testing.split](self.data, desc.train)
        self._read_model(available[:1])
        self.index = self._index(available)
        if self.testing.protocol:
            self._check_protocol()
        self.baseline = corruptions.read_baseline(desc.baseline, environment) if desc.baseline else None
        self.evaluations: dict[str, Any] = {}

    @property
    def is_lockstep(self) -> bool:
        """True if all processes evaluate the same examples together, since they share out the anchors."""
        measured = self.threat is not None or bool(self.projected_onto)
        return measured and self.desc.anchors.threat.shard_anchors

    @property
    def attacked_model(self) -> Any:
        """The model that attacks ask: the same answers on all processes where these share out the anchors."""
        together = self.is_lockstep and self.environment.world_size > 1
        return InLockstep(self.model) if together else self.model

    def _with_thresholds(self) -> TestingHparams:
        testing = self.desc.testing
        names = {"N_threshold": Form.of_test(testing).name} if testing.N_adv_eval else {}
        names |= {"adv_test_attack_power": testing.adv_test_attack_norm} if testing.adv_eval else {}
        if testing.N_coverage and testing.segmented:
            self.environment.log(
                "note: --N_coverage is that of PD-S alone; the set holds fewer safe changes, those alone that "
                f"{HELD[testing.background]} (--background={testing.background})"
            )
        whole = testing.N_adv_eval and not testing.segmented  # backgrounds have bounds of their own
        radii = {"N_threshold": testing.N_radius} if whole else {}
        return with_thresholds(testing, self.desc.coverage, self.environment, "N_coverage", names, radii)

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
        equal = without_direction(measured, self.images, rows, self.data.info.shape)
        empty = without_object(measured, self.images, rows, self.environment, self.data.info.shape)
        index = left_of(rows, equal, empty, self.environment)
        if not len(index):
            raise RunError("the masks of all images are empty, or they equal anchors of another class: nothing is left")
        self.num_excluded = len(rows) - len(index)
        return index

    def _chosen_rows(self, rows: torch.Tensor) -> torch.Tensor:
        testing, total = self.testing, len(rows)
        if testing.num_examples > total:
            asked = testing.num_examples
            raise UsageError(f"--num_examples: expected at most {total}, the {testing.split} images, got {asked}")
        size = testing.num_examples or total
        if testing.evaluate_only_batch_test:
            size = min(size, testing.shard_size)
        if size == total:
            return rows
        labels, is_published = self.images.labels[rows], bool(testing.protocol)
        return rows[stratified_subset(labels, size, self.seed, by_label=is_published)]

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
