"""The test runner: measure a model's accuracy on clean images, and under isotropic and nonisotropic attacks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy
import torch

from foundations.modes import evaluation_mode
from runners.base import Runner
from runners.test import published
from runners.test.evaluations import ENTRIES, PROOFS, WITH_WARNINGS
from runners.test.inputs import Inputs
from runners.test.metrics import accuracies
from runners.test.pictures import Pictures
from runners.test.summary import MOVES
from runners.trackers import Trackers
from testing.evaluations import refuse_no_answers
from testing.gradient_masking import masking_warnings, probed_rows
from testing.shards import Shard, ShardStore, evaluate_in_shards
from threat_specification.attacks.base import NO_CLASS
from threat_specification.attacks.search import WRONG_WITHOUT


class Test(Runner):
    """A runner that writes examples.npz (one row for each example), strip.png, and curves as CSV.

    A finished shard is kept in shards/ until the result is written, so that an interrupted run continues with the next
    shard.
    """

    __test__ = False  # not a test case, although pytest would collect a class of this name

    def prepare(self) -> None:
        self.trackers = Trackers(self.desc.tracking.names, self.desc, self.directory, self.environment)
        self.inputs = inputs = Inputs(self.desc, self.directory, self.environment)
        for name, entry in ENTRIES.items():
            built = entry.build(inputs)
            if built is not None:
                inputs.evaluations[name] = built
        # Read at once: a layer that they cannot describe is told before the attacks begin.
        prepared = {name: proof.prepare(inputs) for name, proof in PROOFS.items()}
        self.prepared = {name: read for name, read in prepared.items() if read is not None}
        self.store = ShardStore(self.directory / "shards", math.inf if inputs.testing.save_adversarials else 1)

    def run(self) -> dict[str, Any]:
        inputs, arrays = self.inputs, self._arrays()
        common = {"num_examples": len(inputs.index), "excluded": inputs.num_excluded}
        result: dict[str, Any] = {name: common | ENTRIES[name].metrics(inputs, arrays) for name in inputs.evaluations}
        result |= {name: common | PROOFS[name].metrics(inputs, arrays) for name in self.prepared}
        for name in self.prepared:
            del arrays[PROOFS[name].clock]
        published.add_leaderboard(inputs, result)
        if told := published.other_preparation(inputs):
            self.environment.log(f"note: {told}")
            result["prepared_otherwise"] = told
        if inputs.testing.protocol:
            result["protocol"] = inputs.testing.protocol
        result["saved_adversarials"] = inputs.testing.save_adversarials
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
        inputs, device = self.inputs, self.environment.device
        split = inputs.images.to(device)
        with evaluation_mode(inputs.model):
            arrays = evaluate_in_shards(
                split.pixels,
                split.labels,
                inputs.index.to(device),
                inputs.testing.shard_size,
                list(inputs.evaluations.values()),
                self.environment,
                self.store,
                in_lockstep=inputs.is_lockstep,
            )
            for name in inputs.evaluations:
                ENTRIES[name].settle(inputs, arrays)
            for lost in self._without_answer(arrays):
                refuse_no_answers(torch.from_numpy(lost), inputs.index)
            for name, prepared in self.prepared.items():
                arrays |= PROOFS[name].arrays(inputs, prepared, arrays, split)
        return arrays

    def _write(self, arrays: dict[str, numpy.ndarray], result: dict[str, Any]) -> None:
        inputs = self.inputs
        labels = inputs.images.labels[inputs.index].numpy()
        self.directory.write_examples({"index": inputs.index.numpy(), "label": labels, **arrays})
        of_images = (inputs.data.info, inputs.model, inputs.images, inputs.index, self.store)
        Pictures(self.directory, self.environment, inputs.testing, *of_images).write(list(inputs.evaluations))
        for name in inputs.evaluations:
            ENTRIES[name].write(inputs, arrays, result)

    @staticmethod
    def _without_answer(arrays: dict[str, numpy.ndarray]) -> Iterator[numpy.ndarray]:
        """[n] bool, for each evaluation: images for which the model has no answer without any attack."""
        if "standard_prediction" in arrays:
            yield arrays["standard_prediction"] == NO_CLASS
        for name in ("adv", "N_adv", MOVES):
            if f"{name}_no_answer" in arrays:
                yield arrays[f"{name}_no_answer"] & (arrays[f"{name}_broken_by"] == WRONG_WITHOUT)

    def _suspicions(self, name: str, arrays: dict[str, numpy.ndarray]) -> list[str]:
        """Sentences on why a figure under attack may be too high."""
        inputs, device = self.inputs, self.environment.device
        rows = probed_rows(len(inputs.index), inputs.testing.shard_size)
        split, index = inputs.images.to(device), inputs.index[rows].to(device)
        shard = Shard(0, split.pixels(index), split.labels[index], index)
        robust = torch.from_numpy(arrays[f"{name}_correct"][rows.numpy()]).to(device)
        with evaluation_mode(inputs.model):
            of_all = (arrays[f"{name}_broken_by"], arrays[f"{name}_no_answer"], arrays.get(f"{name}_scaled"))
            told = masking_warnings(inputs.evaluations[name], shard, robust, *of_all)
        for message in told:
            self.environment.log(f"warning: {message}")
        return told
