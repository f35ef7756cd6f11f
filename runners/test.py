"""test: measure a model's accuracy, clean, under isotropic and under nonisotropic attacks."""

from __future__ import annotations

from typing import Any

import numpy
import torch

from datasets.sampling import stratified_subset
from foundations.desc import derive_seed
from foundations.errors import UsageError
from runners.base import Runner
from runners.inputs import read_data, read_model, read_threat
from runners.pictures import Column, amplified, write_strip
from runners.summaries import EVALUATIONS
from testing.autoattack import members_for
from testing.evaluations import AttackEvaluation, CleanEvaluation, autoattack_evaluation, nonisotropic_evaluation
from testing.modes import evaluation_mode
from testing.shards import evaluate_in_shards
from threat_specification import ProjectedDisplacement

STRIP_ROWS = 6


class Test(Runner):
    """Writes examples.npz (a row for each example) and strip.png (clean and perturbed images)."""

    __test__ = False  # not a test case, whatever pytest reads into the name

    def prepare(self) -> None:
        testing, environment = self.desc.testing, self.environment
        self.seed = derive_seed(self.desc.seed, self.desc.replicate, "test")
        self.model = read_model(self.desc.train, self.desc.model_name, environment)
        self.threat = self._read_threat() if testing.N_adv_eval else None
        self.data = read_data(self.desc.dataset_name, environment)
        total = len(self.data.test)
        if testing.num_examples > total:
            raise UsageError(f"--num_examples: expected at most {total}, the test images, got {testing.num_examples}")
        rows = (
            stratified_subset(self.data.test.labels, testing.num_examples, self.seed)
            if testing.num_examples
            else torch.arange(total)
        )
        self.index = rows[~self._without_direction(rows)]
        self.num_excluded = len(rows) - len(self.index)
        if self.num_excluded:
            environment.say(f"left out: {self.num_excluded} test images that equal an anchor of another class")

    def run(self) -> dict[str, Any]:
        evaluations = self._evaluations()
        split = self.data.test.to(self.environment.device)
        with evaluation_mode(self.model):
            arrays = evaluate_in_shards(
                split.pixels,
                split.labels,
                self.index.to(self.environment.device),
                self.desc.testing.shard_size,
                list(evaluations.values()),
                self.environment,
            )
        labels = self.data.test.labels[self.index].numpy()
        if self.environment.is_primary:
            self.directory.write_examples({"index": self.index.numpy(), "label": labels, **arrays})
            self._write_strip(evaluations)
        return {name: self._figures(name, evaluation, arrays) for name, evaluation in evaluations.items()}

    def _read_threat(self) -> ProjectedDisplacement:
        testing = self.desc.testing
        form = {"weighted": testing.weighted, "segmented": testing.segmented, "background": testing.background}
        if testing.segmented:
            form["mask_source"] = testing.mask_source
        return read_threat(self.desc.anchors, self.environment, **form)

    def _without_direction(self, rows: torch.Tensor) -> torch.Tensor:
        """Which test images equal an anchor of another class, [n] bool: PD is not defined for them."""
        if self.threat is None or self.threat.anchors is None:
            return torch.zeros(len(rows), dtype=torch.bool)
        test = self.data.test
        return self.threat.anchors.equal_with_another_label(test.images[rows], test.labels[rows]).cpu()

    def _evaluations(self) -> dict[str, Any]:
        """Name in result.json -> evaluation, for all that were asked for."""
        testing, num_classes = self.desc.testing, self.data.info.num_classes
        evaluations: dict[str, Any] = {}
        if testing.standard_eval:
            evaluations["standard"] = CleanEvaluation(self.model)
        if testing.adv_eval:
            members = members_for(testing.adv_test_attack_type, num_classes)
            evaluations["adv"] = autoattack_evaluation(
                self.model, num_classes, testing.adv_test_attack_norm, self._adv_power(), members, self.seed
            )
        if self.threat is not None:
            evaluations["N_adv"] = nonisotropic_evaluation(
                self.model,
                self.threat,
                testing.N_threshold,
                testing.N_radius,
                testing.projection,
                testing.N_attack_iter,
                self.seed,
            )
        return evaluations

    def _adv_power(self) -> float:
        return getattr(self.desc.testing, f"adv_test_attack_power_{self.desc.testing.adv_test_attack_norm}")

    def _figures(self, name: str, evaluation: Any, arrays: dict[str, numpy.ndarray]) -> dict[str, Any]:
        """What result.json says of one evaluation."""
        accuracy = float(arrays[f"{name}_correct"].mean())
        figures: dict[str, Any] = {"num_examples": len(self.index), "excluded": self.num_excluded, "accuracy": accuracy}
        if not isinstance(evaluation, AttackEvaluation):
            return figures
        testing = self.desc.testing
        sets = {
            "adv": (self._adv_power(), testing.adv_test_attack_norm, None),
            "N_adv": (testing.N_threshold, self.threat.name if self.threat else "PD", testing.N_radius),
        }
        threshold, norm, radius = sets[name]
        broken_by = arrays[f"{name}_broken_by"]
        standing = {
            attack: float(((broken_by == 0) | (broken_by > number)).mean())
            for number, attack in enumerate(evaluation.attacks, start=1)
        }
        curve = [{"threshold": threshold, "radius": radius, "accuracy": accuracy}]
        return figures | {
            "threshold": threshold,
            "norm": norm,
            "radius": radius,
            "attacks": standing,
            "curve": curve,
        }

    def _write_strip(self, evaluations: dict[str, Any]) -> None:
        """Examples of the first shard, first those that the attacks broke: clean, perturbed, perturbation."""
        samples = {name: evaluation.sample for name, evaluation in evaluations.items() if name != "standard"}
        if not samples:
            return
        clean = next(iter(samples.values()))[0]
        broken = torch.stack([(worst != clean).flatten(1).any(1) for _, worst in samples.values()]).sum(0)
        rows = broken.argsort(descending=True, stable=True)[:STRIP_ROWS]
        clean = clean[rows]
        columns = [Column("clean", clean, self._predicted(clean))]
        for name, (_, worst) in samples.items():
            perturbed, kind = worst[rows], EVALUATIONS[name].split()[0]
            largest = (perturbed - clean).flatten(1).abs().amax(1)
            columns.append(Column(f"{kind}\nattack", perturbed, self._predicted(perturbed)))
            columns.append(
                Column("its change\n(amplified)", amplified(perturbed - clean), [f"l-inf {v:.3f}" for v in largest])
            )
        write_strip(self.directory / "strip.png", columns)

    def _predicted(self, images: torch.Tensor) -> list[str]:
        with torch.no_grad(), evaluation_mode(self.model):
            return [f"seen as {self.data.info.classes[label]}" for label in self.model(images).argmax(1)]
