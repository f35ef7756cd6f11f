"""The evaluate_threat runner: measure threats of safe and unsafe changes, and how well each threat separates them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from matplotlib.figure import Figure

from datasets.base import Examples
from datasets.human_pairs import write_pairs
from datasets.sampling import stratified_subset
from foundations.clock import timed
from foundations.desc import StoredRun, derive_seed
from foundations.errors import RunError
from foundations.files import write_npz, write_text
from foundations.input_hparams import ModelHparams
from foundations.modes import evaluation_mode
from runners import corruptions
from runners.base import Runner
from runners.checks import names_in
from runners.evaluate_threat import (
    border,
    charts,
    corruption_charts,
    coverage,
    coverage_chart,
    image_plots,
    perturbations,
)
from runners.evaluate_threat.anchor_variants import as_bytes, variants
from runners.evaluate_threat.attribution import agreement, responsible
from runners.evaluate_threat.human import People
from runners.evaluate_threat.human_desc import STUDY
from runners.evaluate_threat.measurement import Measurement
from runners.evaluate_threat.statistics import Separations, separation_csv, table, table_csv
from runners.evaluate_threat.study import study_pairs
from runners.inputs import check_masks, read_data, read_model, read_threat, selection_space
from runners.plots import write_figure
from runners.undefined import left_of, without_object
from testing.perturbed import Perturbation, PerturbationEvaluation
from testing.separation import Bootstrap
from testing.shards import ShardStore, evaluate_in_shards
from threat_specification import L2, Linf, Measure, ProjectedDisplacement, Threat
from threat_specification.perceptual import FeatureDistance, from_package
from threat_specification.projected_displacement.masks import FileMasks
from threat_specification.ssim import SSIMDistance


def has_file_masks(measure: Measure) -> bool:
    """True for a segmented threat whose masks are those of the test images, from a file."""
    return isinstance(measure, ProjectedDisplacement) and isinstance(measure.mask_source, FileMasks)


# Figures by name; each is written as PNG and PDF.
FIGURES: dict[str, Callable[[Measurement], Figure | None]] = {
    "separation": charts.separation,
    "distributions": charts.distributions,
    "coverage": coverage_chart.coverage,
    "gallery": image_plots.gallery,
    "severity": corruption_charts.severity,
    "heatmap": corruption_charts.heatmap,
    "heatmap_raw": corruption_charts.heatmap_raw,
    "quadrants": corruption_charts.quadrants,
    "regions": corruption_charts.regions,
    "equal_linf": image_plots.equal_linf,
    "directions": image_plots.directions,
    "slice": image_plots.plane_slice,
    "border": border.border,
    "class_distance": charts.class_distance,
}


class EvaluateThreat(Runner):
    """A runner that writes examples.npz, table.csv, separation.csv, pairs for a study with people, and figures.

    examples.npz has one row for each image and one column for each perturbation. A finished shard is kept until the
    result is written, so that an interrupted run continues with the next shard.
    """

    def prepare(self) -> None:
        desc, environment = self.desc, self.environment
        self.seed = derive_seed(desc.seed, desc.replicate, "evaluate_threat")
        self.data = read_data(desc, environment)
        if len(self.data.test.labels.unique()) < 2:
            raise RunError(f"{desc.dataset_name}: expected test images of at least two classes, got one class")
        self.judge, self.features = self._model(desc.judge), self._model(desc.features)
        # What follows the names of changes by a model -> that model.
        self.models = {f" of {run.model.model_name}" if desc.more else "": self._model(run) for run in desc.models}
        self.threat = read_threat(desc.anchors, environment)
        self.measures = self._measures()
        check_masks(self.measures.values(), self.data.test, "test")
        self.people = People.read(desc, self.data, self.measures)
        self.index, self.excluded = self._sample()
        self.training = self._training_rows()
        self.find = perturbations.Partners(self.data.test, self.seed)
        self.perturbations = self._perturbations()
        self.store = ShardStore(self.directory / "shards")

    def run(self) -> dict[str, Any]:
        evaluation = PerturbationEvaluation(self.perturbations, self.measures)
        device = self.environment.device
        with ExitStack() as stack:
            for model in (*self.models.values(), self.judge, self.features):
                if model is not None:
                    stack.enter_context(evaluation_mode(model))
            threats = self._measured(evaluation, self.data.test, self.index, self.store)
            covered = self._coverage(evaluation.seconds)
            with timed(evaluation.seconds, "statistics", device):
                result = self._metrics(threats, covered)
            if self.people is not None:
                with timed(evaluation.seconds, "people", device):
                    result["human"] = self._judged(self.people)
            if self.environment.is_primary:
                with timed(evaluation.seconds, "pictures", device):
                    self._write(threats, result, covered)
        return {**result, "seconds": {name: round(spent, 3) for name, spent in evaluation.seconds.items()}}

    def _measured(
        self, evaluation: PerturbationEvaluation, images: Examples, index: torch.Tensor, store: ShardStore
    ) -> dict[str, numpy.ndarray]:
        """Threats [n, P] by name, of the changes of some images."""
        device = self.environment.device
        return evaluate_in_shards(
            lambda rows: images.pixels(rows.to(images.labels.device)).to(device),
            images.labels.to(device),
            index.to(device),
            self.desc.perturbation.images_per_shard,
            [evaluation],
            self.environment,
            store,
            in_lockstep=self.desc.anchors.threat.shard_anchors,
        )

    def _training_rows(self) -> torch.Tensor | None:
        """Training images on whose changes thresholds are found, none an anchor; None without such of two classes."""
        hparams, images = self.desc.perturbation, self.data.train
        of_anchors = [getattr(measure, "indices", None) for measure in self.measures.values()]
        known = [rows for rows in of_anchors if rows is not None]
        rows = coverage.training_rows(images, known, hparams.coverage_images, self.seed)
        measures = self._without_file_masks()
        if len(rows):
            rows = rows[~(self._equal_other_anchor(images, rows) | self._without_object(images, rows, measures))]
        if len(images.labels.cpu()[rows].unique()) > 1:
            return rows
        many = " or no --stability" if hparams.stability else ""
        self.environment.log(
            "note: no thresholds by coverage: expected training images of two classes that are no anchors, got "
            f"{f'{len(rows)} of one class' if len(rows) else 'none'}; choose a smaller --per_label{many} to have them"
        )
        return None

    def _coverage(self, seconds: dict[str, float]) -> coverage.Coverage | None:
        """The same changes of training images that are no anchors; None without such images or safe changes."""
        hparams, images, rows = self.desc.perturbation, self.data.train, self.training
        if rows is None:
            return None
        find = perturbations.Partners(images, self.seed, rows)
        changes = corruptions.safe(names_in(hparams.suites), hparams.severities, self.seed)
        changes += perturbations.unsafe(find, self.seed)
        changes = [change for change in changes if change.group in ("safe", "unsafe")]
        if all(change.group == "unsafe" for change in changes):
            return None
        evaluation = PerturbationEvaluation(changes, self._without_file_masks(), seconds)
        threats = self._measured(evaluation, images, rows, ShardStore(self.directory / "shards" / "coverage"))
        return coverage.Coverage(rows.numpy(), threats, [change.group for change in changes])

    def _without_file_masks(self) -> dict[str, Measure]:
        """The measures that know all images: masks of a file are those of the test images."""
        return {name: measure for name, measure in self.measures.items() if not has_file_masks(measure)}

    def _threat_in_one_place(self) -> ProjectedDisplacement:
        """The threat with all its anchors in one process, for the figures, which only the primary process draws."""
        anchors = self.desc.anchors
        if not anchors.threat.shard_anchors:
            return self.threat
        return read_threat(replace(anchors, threat=replace(anchors.threat, shard_anchors=False)), self.environment)

    def _model(self, run: Any) -> Any:
        if run is None:
            return None
        model = ModelHparams(**run.content["hashed"]["model"]) if isinstance(run, StoredRun) else run.model
        return read_model(run, model, self.environment, self.data.info)

    def _measures(self) -> dict[str, Measure]:
        """The threats by name, PD first."""
        desc, environment = self.desc, self.environment
        made: list[Measure] = [self.threat, read_threat(desc.anchors, environment, tangents=True)]
        if desc.anchors.threat.class_weights:
            made.append(read_threat(desc.anchors, environment, weighted=True))
        if desc.perturbation.threat_masks:
            form = {
                "mask_source": desc.perturbation.threat_masks,
                "segmented_norm": desc.perturbation.threat_segmented_norm,
            }
            made.append(read_threat(desc.anchors, environment, segmented=True, **form))
        made += [L2(), Linf(), SSIMDistance()]
        for name in names_in(desc.perturbation.perceptual):
            is_ours = name.startswith("model:")
            made.append(FeatureDistance(self.features, name) if is_ours else from_package(name, environment.device))
        measures = {measure.name: measure for measure in made}
        if desc.perturbation.stability:
            space = selection_space(desc.anchors, self.data, environment)
            measures |= variants(self.data, desc.anchors.threat, space, self.seed, environment.device)
        return measures

    def _sample(self) -> tuple[torch.Tensor, int]:
        """Rows of the test images to measure, and the number of images left out.

        Images that equal an anchor of another class are left out, and those with an empty mask, if there are masks.
        """
        labels = self.data.test.labels
        rows = stratified_subset(labels.cpu(), min(self.desc.perturbation.num_images, len(labels)), self.seed)
        equal = self._equal_other_anchor(self.data.test, rows)
        empty = self._without_object(self.data.test, rows, self.measures)
        left = left_of(rows, equal, empty, self.environment)
        if len(labels.cpu()[left].unique()) < 2:
            raise RunError("all test images but those of one class equal an anchor of another or have an empty mask")
        return left, len(rows) - len(left)

    def _without_object(self, images: Examples, rows: torch.Tensor, measures: dict[str, Measure]) -> torch.Tensor:
        """Mask [n] bool of the images with an empty mask: all their changes have PD-S 0."""
        return without_object(measures.values(), images, rows, self.environment, self.data.info.shape)

    def _equal_other_anchor(self, images: Examples, rows: torch.Tensor) -> torch.Tensor:
        """Mask [n] bool of the images that equal an anchor of another class of any of the threats."""
        equal = torch.zeros(len(rows), dtype=torch.bool)
        pixels = images.pixels(rows.to(images.labels.device)).cpu()
        labels = images.labels.cpu()[rows]
        for threat in self.measures.values():
            if isinstance(threat, ProjectedDisplacement):
                assert threat.anchors is not None
                stored = as_bytes(pixels) if threat.anchors.images.dtype == torch.uint8 else pixels
                equal |= threat.equals_other_anchor(stored, labels).cpu()
        return equal

    def _perturbations(self) -> list[Perturbation]:
        hparams = self.desc.perturbation
        made = corruptions.safe(names_in(hparams.suites), hparams.severities, self.seed)
        if hparams.corruption_files:
            made += corruptions.from_files(Path(hparams.corruption_files), self.data, hparams.severities)
        made += perturbations.unsafe(self.find, self.seed)
        if isinstance(segmented := self.measures.get("PD-S"), ProjectedDisplacement):
            assert segmented.mask_source is not None
            made += perturbations.regions(made, segmented.mask_source)
        radii = {"Linf": hparams.adversarial_Linf, "L2": hparams.adversarial_L2}
        for of, model in self.models.items():
            if hparams.morphs:
                made += perturbations.morphs(model, self.judge, self.find, of)
            if hparams.adversarials:
                made += perturbations.adversarials(model, radii, hparams.adversarial_iter, self.seed, of)
        return made

    def _metrics(self, threats: dict[str, numpy.ndarray], covered: coverage.Coverage | None) -> dict[str, Any]:
        bootstrap = Bootstrap.over(len(self.index), self.desc.perturbation.bootstrap, self.seed)
        separations = Separations(self.perturbations, threats, bootstrap)
        result = {
            "num_examples": len(self.index),
            "excluded": self.excluded,
            "threats": list(threats),
            "coverage": covered.describe(self.perturbations, threats, bootstrap, self.seed) if covered else None,
            **separations.describe(),
            "rising": separations.rising(),
            "responsible": responsible(
                self.threat, threats[self.threat.name], self.perturbations, self.data, self.index
            ),
            "table": table(self.perturbations, threats),
        }
        if self.desc.perturbation.stability:
            result["stability"] = agreement(threats)
        return result

    def _judged(self, people: People) -> dict[str, Any]:
        """A table of how well each threat agrees with people."""
        threats = people.threats(self.desc, self.environment, ShardStore(self.directory / "shards" / "people"))
        human = people.describe(threats, self.desc.perturbation.bootstrap, self.seed)
        if self.environment.is_primary:
            people.write(self.directory, threats, human)
        return human

    def _write(
        self, threats: dict[str, numpy.ndarray], result: dict[str, Any], covered: coverage.Coverage | None
    ) -> None:
        labels = self.data.test.labels.cpu()[self.index]
        self.directory.write_examples({"index": self.index.numpy(), "label": labels.numpy(), **threats})
        write_text(self.directory / "table.csv", table_csv(result["table"]))
        write_text(self.directory / "separation.csv", separation_csv(result))
        if covered is not None:
            write_text(self.directory / "coverage.csv", covered.csv())
            write_npz(self.directory / "coverage.npz", covered.arrays())
        measurement = Measurement(
            self.data,
            self._threat_in_one_place(),
            self.index,
            self.perturbations,
            threats,
            result,
            self._class_distances(labels),
            covered,
            self._sets(),
        )
        write_pairs(self.directory / STUDY, study_pairs(measurement, self.find.labels, self.seed))
        for name, draw in FIGURES.items():
            write_figure(self.directory / name, partial(draw, measurement), ("png", "pdf"))

    def _sets(self) -> dict[str, Threat]:
        """The threats whose sets figures show; none where the anchors are shared out among processes."""
        if self.desc.anchors.threat.shard_anchors:
            return {}
        chosen = {name: measure for name, measure in self.measures.items() if isinstance(measure, Threat)}
        return {name: threat for name, threat in chosen.items() if not threat.segmented and "[" not in name}

    def _class_distances(self, labels: torch.Tensor) -> numpy.ndarray | None:
        """[n] class weights of the images and their partners of another class, if the weighted form is measured."""
        weighted = self.measures.get("PD-W")
        if not isinstance(weighted, ProjectedDisplacement) or weighted.class_weights is None:
            return None
        return weighted.class_weights.cpu()[labels, self.find.labels(self.index)].double().numpy()
