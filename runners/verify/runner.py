"""The verify runner: check whether a claim holds on this machine, with this data set and these weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from foundations.desc import StoredRun
from foundations.errors import RunError, UsageError
from foundations.files import write_json
from foundations.hparam_fields import format_value
from foundations.input_hparams import DatasetHparams, ModelHparams
from foundations.modes import evaluation_mode
from foundations.results import describe_environment, sealed
from models.normalize import Classifier
from models.sources import FILE, HUB
from runners.base import Runner
from runners.claims import (
    REFUTED,
    Refuted,
    anchors_digest,
    check_images,
    dataset_of,
    disagrees,
    flags_of,
    images_of,
    judge_of,
)
from runners.inputs import read_data, read_model
from runners.train.desc import PretrainedDesc, stored_model
from testing.claims.claim import Claim, network_of
from testing.claims.digests import weights_digest
from threat_specification import AnchorSet

HOW = "name it by --train_dir=DIR, or by --model_source=file:WEIGHTS --model_name=NAME"
LONGEST = 60  # characters of a name that the file gives


class Verify(Runner):
    """A runner that believes the file nothing: images, labels and anchors are the user's, weights are compared."""

    def prepare(self) -> None:
        self.desc.model.hashed()  # reads a file of weights: raises UsageError if it is not there
        self.claim = Claim.read(self.desc.file)
        facts, arrays = self.claim.facts, self.claim.arrays
        place = {"data_dir": self.desc.place.data_dir, "download": self.desc.place.download}
        self.dataset = dataset_of(self.claim, self.desc.file, **place)
        self.data = read_data(self.desc, self.environment, self.dataset)
        try:
            check_images(self.claim, self.desc.file, self.data)
        except Refuted as error:
            if self.environment.is_primary:
                self._keep_refutation([str(error)])
            raise
        anchors = self._anchors()
        forms = [each["threat"] for each in facts["claims"]]
        self.model = self._model()
        examples = images_of(self.data, facts["data"]["split"])
        weights = arrays.get("class_weights")
        self.judge = judge_of(forms, self.model, examples, arrays["index"], anchors, weights, self.environment)

    def run(self) -> dict[str, Any]:
        with evaluation_mode(self.model):
            verdicts = self.judge.verdicts(self.claim)
        failed = [verdict.sentence() for verdict in verdicts if not verdict.holds]
        if self.environment.is_primary:
            self._keep_refutation(failed)
        if failed:
            raise RunError(f"{self.desc.file} does not hold in {len(failed)} of {len(verdicts)} sets: {failed[0]}")
        facts = self.claim.facts
        return {
            "dataset_name": self.dataset.dataset_name,
            "claim": self.claim.digest,
            "model": facts["model"],
            "found_as": self.found_as,
            "authors": facts["authors"],
            "claims": facts["claims"],
            "about": self._about(),
            "doubtful": [int(verdict.doubtful.sum()) for verdict in verdicts],
            "verdicts": [verdict.sentence() for verdict in verdicts],
        }

    def _keep_refutation(self, failed: list[str]) -> None:
        """Write in place of a result why the claim does not hold, so that no leaderboard shows it as verified."""
        file = self.directory / REFUTED
        if failed:
            made = describe_environment(self.environment)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, sealed({"claim": self.claim.digest, "refuted": failed, "environment": made}))
            (self.directory / "result.json").unlink(missing_ok=True)
        else:
            file.unlink(missing_ok=True)

    def _anchors(self) -> AnchorSet | None:
        """The anchors of the claim, from the training images that are here or from the file; None without PD."""
        told, arrays = self.claim.facts["anchors"], self.claim.arrays
        if told is None:
            return None
        if told["by"] == "image":  # reading the file compared their digest with what is told
            return AnchorSet(*(torch.from_numpy(arrays[f"anchor_{name}"]) for name in ("image", "label")))
        rows = torch.from_numpy(arrays["anchor_index"])
        if bool((rows >= len(self.data.train)).any()):
            raise disagrees(self.desc.file, "anchors among the training images", f"{len(self.data.train)} of these")
        anchors = AnchorSet(self.data.train.read(rows), self.data.train.labels[rows], rows)
        if (digest := anchors_digest(anchors)) != told["sha256"]:
            raise disagrees(self.desc.file, f"anchors of SHA-256 {told['sha256'][:12]}", digest[:12])
        return anchors

    def _model(self) -> Classifier:
        """The model of the claim; raises RunError if the weights are others."""
        source, model = self._source()
        classifier = read_model(source, model, self.environment, self.data.info)
        digest, told = weights_digest(classifier), self.claim.facts["model"]
        if digest != told["sha256"]:
            raise RunError(
                f"these are other weights than the claim is about: expected SHA-256 {told['sha256'][:12]} of "
                f"{told['name']}, got {digest[:12]}; {HOW}"
            )
        self.found_as = {"name": source.name, "network": model.model_name}
        return classifier

    def _source(self) -> tuple[PretrainedDesc | StoredRun, ModelHparams]:
        """The source of the weights: the flags, or else the claim."""
        root, told, given = self.environment.root_dir, self.claim.facts["model"], self.desc.model
        if train_dir := self.desc.by_directory.train_dir:
            return _stored(stored_model(train_dir, str(root)))
        if given.model_name or given.model_source:
            return self._published(given)
        if told["kind"] == "published":
            model = flags_of(ModelHparams, told["description"], self.desc.file)
            if model.model_source.startswith((FILE, HUB)):  # only flags may name a file or an address
                raise RunError(f"{self.desc.file} is refused: it names a file of weights as published")
            return self._published(model)
        if told["kind"] == "trained" and (root / told["directory"]).is_dir():
            return _stored(StoredRun.read(Path(told["directory"]), root, "train"))
        raise UsageError(f"the model {told['name']} is not here; {HOW}; {told['obtain']}")

    def _published(self, model: ModelHparams) -> tuple[PretrainedDesc, ModelHparams]:
        model = dataclasses.replace(model, model_type="pretrained")
        desc = PretrainedDesc(dataset=self.dataset, model=model)
        return desc, desc.model

    def _about(self) -> str:
        """The model, images and anchors in words, with all that the file itself chose about them."""
        facts, arrays = self.claim.facts, self.claim.arrays
        usual = DatasetHparams()
        chosen = {
            name: value
            for name, value in dataclasses.asdict(self.dataset).items()
            if name not in ("dataset_name", "data_dir", "download") and value != getattr(usual, name)
        }
        flags = "".join(f", --{name}={format_value(value)}" for name, value in sorted(chosen.items()))
        told, anchors = facts["data"], facts["anchors"]
        words = (
            f"{self._called()}, weights {facts['model']['sha256'][:12]}; {told['examples']} {told['split']} images of "
        )
        words += f"{self.dataset.dataset_name}{flags}"
        if anchors is not None:
            place = "training images" if anchors["by"] == "index" else "images that the file brings, not the data set"
            words += f"; anchors are {anchors['count']} {place}, SHA-256 {anchors['sha256'][:12]}"
        if "class_weights" in arrays:
            weights = arrays["class_weights"]
            words += f"; class weights are the file's, {weights.min():.3g} to {weights.max():.3g}"
        return words

    def _called(self) -> str:
        """The name under which the weights were found here, and what the file calls them where it is another."""
        name, network = self.found_as["name"], self.found_as["network"]
        told = [
            f"{word} {theirs[:LONGEST]}"
            for word, theirs, ours in (
                ("model", self.claim.facts["model"]["name"], name),
                ("network", network_of(self.claim.facts), network),
            )
            if theirs != ours
        ]
        return f"{name} (the file says {', '.join(told)})" if told else name


def _stored(run: StoredRun) -> tuple[StoredRun, ModelHparams]:
    return run, ModelHparams(**run.content["hashed"]["model"])
