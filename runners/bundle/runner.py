"""The bundle runner: round the adversarial examples of test runs to 8 bits, and write those that still hold."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from foundations.errors import RunError, UsageError
from foundations.files import write_bytes
from foundations.modes import evaluation_mode
from runners.base import Runner
from runners.bundle.layers import Layer, Points, layers_of, sets_among
from runners.bundle.origin import described_data, described_model
from runners.claims import anchors_digest, digest_of, images_of, judge_of
from runners.inputs import read_anchors, read_data, read_model, require_complete
from runners.test.desc import TestDesc
from testing.among_others import ASKED, depends_on_others
from testing.claims import schema
from testing.claims.claim import ITSELF, STANDING, Claim, settled, smallest
from testing.claims.digests import weights_digest
from testing.claims.judging import batches, cell_of, described, key
from testing.claims.rounding import led_uphill, onto_grid, well_inside
from testing.claims.tensors import Arrays
from threat_specification.projected_displacement.class_weights import load_class_weights


class BundleRun(Runner):
    """A runner that writes a claim. It asks the model again about every point: a report alone proves nothing."""

    def prepare(self) -> None:
        test: TestDesc = self.desc.test
        runs = [require_complete(test, self.environment).path, *(run.path for run in self.desc.more)]
        self.layers = [layer for path in runs for layer in layers_of(path)]
        self.index, self.labels = self.layers[0].index, self.layers[0].labels
        anchored = [layer for layer in self.layers if layer.hashed.get("anchors")]
        for layer in self.layers:
            layer.check_same(self.layers[0])
            if anchored:
                layer.check_same(anchored[0])
        told = {"hash": test.anchors.hash, "replicate": test.anchors.replicate}
        if anchored and anchored[0].hashed["anchors"] != told:
            raise UsageError(
                f"--more_runs: expected runs with the anchors that the flags name ({told['hash']}, replicate "
                f"{told['replicate']}), got others: {anchored[0].path}"
            )
        self.data = read_data(test, self.environment)
        self.examples = images_of(self.data, test.testing.split)
        self.model = read_model(test.train, test.model, self.environment, self.data.info)
        self.sets = sets_among(self.layers)
        needs_anchors = any(each["threat"]["name"] == "PD" for each in self.sets)
        self.anchors = read_anchors(test.anchors, self.environment) if needs_anchors else None
        self.class_weights = None
        if any(each["threat"].get("weighted") for each in self.sets):
            path = require_complete(test.anchors, self.environment) / "class_weights.safetensors"
            self.class_weights = load_class_weights(path).numpy()
        forms = [each["threat"] for each in self.sets]
        self.judge = judge_of(
            forms, self.model, self.examples, self.index, self.anchors, self.class_weights, self.environment
        )

    def run(self) -> dict[str, Any]:
        with evaluation_mode(self.model):
            self._refuse_answers_of_batches()
            sources = [self._themselves(), *(self._rounded(layer) for layer in self.layers)]
            arrays = self._common() | smallest(sources)
            arrays["found_by"] = (arrays["witness"] != STANDING).astype("uint8")[..., None]
            runs = self._runs(sources)
            claim = settled(Claim(self._facts(runs), arrays))
            verdicts = self.judge.verdicts(claim)
        if not all(verdict.holds for verdict in verdicts):
            raise RunError("this model does not answer the same twice: nobody could check its adversarial examples")
        content = claim.to_bytes()
        if self.environment.is_primary:
            write_bytes(self.desc.opened(self.environment.root_dir), content)
        return {
            "claim": claim.digest,
            "bytes": len(content),
            "points": claim.facts["points"]["count"],
            "verdicts": [verdict.sentence() for verdict in verdicts],
            "sets": self._losses(runs),
        }

    def _refuse_answers_of_batches(self) -> None:
        """Raise RunError if answers depend on the other images of the batch, since others ask in other batches."""
        few = torch.arange(min(2 * ASKED, len(self.index)), device=self.environment.device)
        images = self.judge.batch(few).images
        with torch.no_grad():
            first, second = self.model(images), self.model(images)
        if torch.equal(first, second) and depends_on_others(self.model, images, first):
            raise RunError(
                "this model's answers depend on the other images of the batch: nobody could check its adversarial "
                "examples; let batch normalisation use running statistics"
            )

    def _themselves(self) -> Arrays:
        """The images that the model misclassifies as they are: witnesses in every set."""
        wrong = []
        for numbers in batches(torch.ones(len(self.index))):
            batch = self.judge.batch(numbers.to(self.environment.device))
            wrong.append((batch.margins(torch.zeros_like(batch.bytes, dtype=torch.int16)).value > 0).cpu())
        witness = torch.where(torch.cat(wrong), ITSELF, STANDING).numpy()
        shape = (0, *self.data.info.shape)
        return {
            "owner": numpy.zeros(0, "int32"),
            "delta": numpy.zeros(shape, "int16"),
            "witness": numpy.tile(witness, (len(self.sets), 1)),
        }

    def _rounded(self, layer: Layer) -> Arrays:
        """The points of one evaluation that survive rounding, and all sets in which they are."""
        witness = numpy.full((len(self.sets), len(self.index)), STANDING)
        owners, deltas, count = [numpy.zeros(0, "int64")], [numpy.zeros((0, *self.data.info.shape), "int16")], 0
        for points in layer.points():
            # Where a point of a smaller set serves, no other is needed.
            needed = points.broken & (witness[self.sets.index(points.asked)] == STANDING)
            for numbers in batches(torch.from_numpy(needed)):
                row, delta, holds = self._round(points, numbers)
                for place, inside in enumerate(holds):
                    free = inside & (witness[place, row] == STANDING)
                    witness[place, row[free]] = (numpy.arange(len(row)) + count + 1)[free]
                owners.append(row)
                deltas.append(delta)
                count += len(row)
        return {"owner": numpy.concatenate(owners), "delta": numpy.concatenate(deltas), "witness": witness}

    def _round(self, points: Points, numbers: Tensor) -> tuple[numpy.ndarray, numpy.ndarray, list[numpy.ndarray]]:
        """Those examples of a batch that are kept, their changes, and for each set whether it holds them."""
        batch = self.judge.batch(numbers.to(self.environment.device))
        perturbed, asked = points.images(numbers).to(self.environment.device), points.asked
        form, cell = key(asked["threat"]), cell_of(asked)
        delta, kept = onto_grid(batch, perturbed, form, cell)
        if bool((lost := ~kept).any()):
            few = self.judge.batch(numbers.to(lost.device)[lost])
            delta[lost], kept[lost] = led_uphill(few, perturbed[lost], form, cell)
        measured = {form: batch.measure(form, delta) for form in self.judge.threats}
        holds = []
        for each in self.sets:
            threat, length, lawful = measured[key(each["threat"])]
            holds.append((lawful & well_inside(cell_of(each)).holds(threat, length))[kept].cpu().numpy())
        return numbers[kept.cpu()].numpy(), delta[kept].cpu().numpy(), holds

    def _runs(self, sources: list[Arrays]) -> list[dict[str, Any]]:
        """For each test run: what it reported in each set, and how many broken images rounding lost."""
        found: dict[str, dict[str, Any]] = {}
        for layer, source in zip(self.layers, sources[1:], strict=True):
            broken = ((source["witness"] != STANDING) | (sources[0]["witness"] != STANDING)).sum(1)
            nothing: dict[str, Any] = {name: [None] * len(self.sets) for name in ("reported", "certified")}
            nothing["lost"] = [0] * len(self.sets)
            run = found.setdefault(layer.path, {"author": self.desc.claim.author, **layer.made, **nothing})
            if layer.certified is not None:
                run["certified"][self.sets.index(layer.headline)] = layer.certified
            for place, each in enumerate(self.sets):
                if (accuracy := layer.reported(each)) is not None:
                    run["reported"][place] = accuracy
                    run["lost"][place] = max(0, round((1 - accuracy) * len(self.index)) - int(broken[place]))
        runs = {schema.canonical_json(run): run for run in found.values()}
        return [runs[name] for name in sorted(runs)]

    def _losses(self, runs: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
        """For each set, how many images the runs broke, and how many of these were lost; where a run reports it."""
        losses = {}
        for place, each in enumerate(self.sets):
            told = [run for run in runs if run["reported"][place] is not None]
            if told:
                least = min(told, key=lambda run: (run["reported"][place], run["lost"][place]))
                attacked = round((1 - least["reported"][place]) * len(self.index))
                losses[described(each)] = {"attacked": attacked, "lost": least["lost"][place]}
        return losses

    def _common(self) -> Arrays:
        """The arrays that all claims about these images and anchors share."""
        arrays = {"index": self.index, "label": self.labels}
        if self.class_weights is not None:
            arrays["class_weights"] = self.class_weights
        if self.anchors is None:
            return arrays
        if self._anchors_by() == "index":
            assert self.anchors.indices is not None
            return arrays | {"anchor_index": self.anchors.indices.numpy()}
        return arrays | {"anchor_image": self.anchors.images.numpy(), "anchor_label": self.anchors.labels.numpy()}

    def _anchors_by(self) -> str:
        """Anchors are given by their rows if these give the same images and labels again, else by themselves."""
        assert self.anchors is not None
        rows = self.anchors.indices
        again = rows is not None and digest_of(self.data.train, rows) == anchors_digest(self.anchors)
        return "index" if again else "image"

    def _facts(self, runs: list[dict[str, Any]]) -> dict[str, Any]:
        test: TestDesc = self.desc.test
        told = described_model(test.train, test.model, test.dataset_name, self.environment.root_dir)
        anchors = self.anchors
        return {
            "format": schema.FORMAT,
            "version": schema.FORMAT_VERSION,
            "authors": [self.desc.claim.author],
            "model": told | {"sha256": weights_digest(self.model)},
            "data": {
                "description": described_data(test.dataset),
                "split": test.testing.split,
                "examples": len(self.index),
                "shape": list(self.data.info.shape),
                "classes": self.data.info.num_classes,
                "sha256": digest_of(self.examples, torch.from_numpy(self.index)),
            },
            "anchors": None
            if anchors is None
            else {"count": len(anchors), "by": self._anchors_by(), "sha256": anchors_digest(anchors)},
            "claims": self.sets,
            "points": {},
            "runs": runs,
        }
