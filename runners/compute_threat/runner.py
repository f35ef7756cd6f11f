"""The compute_threat runner: choose anchors, a few training images of each class."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from datasets.base import part_size
from datasets.sampling import stratified_subset
from foundations.desc import derive_seed
from foundations.errors import RunError
from foundations.files import read_json, write_bytes, write_json
from foundations.pixels import as_floats
from runners.base import Runner
from runners.inputs import read_data, selection_space
from runners.plots import write_contact_sheet
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.projected_displacement.anchor_selection import (
    INDEPENDENT_HALVES,
    coverage,
    fingerprints,
    select_class,
    shared_between_classes,
)
from threat_specification.projected_displacement.calibration import calibrate, pairs_of_classes, warn_below_one
from threat_specification.projected_displacement.class_weights import class_weights_from
from threat_specification.projected_displacement.selection_space import RAW

SHOWN_CLASSES = 20  # rows of the contact sheet, at most
HALVES_EXAMPLES = 500  # moves between test images by which the half-sets are compared, at most
RADIUS_EXAMPLES = 2000  # test images for the quantiles of the inscribed radius, at most
CALIBRATION_IMAGES = 2000


class ComputeThreat(Runner):
    """A runner that writes anchors.safetensors, anchors.png and, if asked for, class_weights.safetensors.

    anchors.png has one row for each of the first classes. The classes are distributed over the processes. The choice
    for a class is kept in classes/ until all are done, so that an interrupted run continues with the next class.
    """

    def prepare(self) -> None:
        if self.desc.threat.halves and self.desc.threat.per_label < 2:
            raise RunError("--halves: expected --per_label of at least 2, got 1")
        self.data = read_data(self.desc, self.environment)
        train = self.data.train
        self.seed = derive_seed(self.desc.seed, self.desc.replicate, "anchors")
        self.load = train.read
        if self.desc.threat.class_weights:
            threat, classes = self.desc.threat, self.data.info.classes
            self.weights, notices = class_weights_from(threat.class_weights, classes, threat.class_weights_form)
            for notice in notices:
                self.environment.log(f"note: {notice}")
        self.ambiguous = shared_between_classes(self._fingerprints(), train.labels)
        if self.desc.threat.strict and bool(self.ambiguous.any()):
            raise RunError(
                f"--strict: {int(self.ambiguous.sum())} training images of {self.desc.dataset_name} occur with two "
                f"labels, the first is number {int(self.ambiguous.nonzero()[0])}; clean the data or leave out --strict"
            )
        self.classes = {label: rows[~self.ambiguous[rows]] for label, rows in self.data.train_rows().items()}
        for label, rows in self.classes.items():
            if len(rows) < self.desc.threat.per_label:
                # raises the error
                select_class(self.load, RAW, rows, label, "random", self.desc.threat.per_label, 1, 0)
        self.space = selection_space(self.desc, self.data, self.environment)
        # Of raw pixels in any case, to compare choices by; beside it in the space of the selection.
        self.spaces = {"coverage": RAW} | ({} if self.space == RAW else {"coverage_normalised": self.space})

    def run(self) -> dict[str, Any]:
        threat, train = self.desc.threat, self.data.train
        chosen, lowest = self._choose()
        rows = torch.from_numpy(chosen).flatten()
        anchors = AnchorSet(train.read(rows), train.labels[rows], rows)
        names = self.data.info.classes
        if self.environment.is_primary:
            anchors.save(self.directory / "anchors.safetensors")
            shown = [self.data.info.title(label) for label in self.classes][:SHOWN_CLASSES]
            images = anchors.images[: len(shown) * threat.per_label]
            write_contact_sheet(self.directory / "anchors.png", images, threat.per_label, shown)
        dropped = self.ambiguous.nonzero().flatten().tolist()
        result = {
            "num_anchors": len(anchors),
            "per_label": threat.per_label,
            **{
                name: {names[label]: round(float(v), 6) for label, v in zip(self.classes, column, strict=True)}
                for name, column in zip(self.spaces, lowest.T, strict=True)
            },
            "dropped": {"count": len(dropped), "indices": dropped},
            "digest": anchors.digest,
            "inscribed_radius": self._inscribed_radius(anchors),
        }
        if threat.class_weights:
            result["class_weights"] = self._keep_weights(anchors)
        if threat.halves:
            result["halves"] = self._compare_halves(anchors)
        return result

    def _fingerprints(self) -> Tensor:
        """Fingerprints of all training images; each process reads its share."""
        count, world_size = len(self.data.train), self.environment.world_size
        mine = torch.arange(count).tensor_split(world_size)[self.environment.rank]
        prints = numpy.zeros(count, numpy.int64)
        prints[mine.numpy()] = fingerprints(self.data.train.contents(mine)).numpy()
        return torch.from_numpy(self.environment.all_reduce_sum(prints))

    def _choose(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Row numbers [K, per_label] and coverage [K, spaces], the same on every process."""
        chosen = numpy.zeros((len(self.classes), self.desc.threat.per_label), numpy.int64)
        lowest = numpy.zeros((len(self.classes), len(self.spaces)))
        places = list(enumerate(self.classes))[self.environment.rank :: self.environment.world_size]
        for place, label in self.environment.progress(places, "choosing anchors", unit="class"):
            chosen[place], lowest[place] = self._choose_class(label)
        return self.environment.all_reduce_sum(chosen), self.environment.all_reduce_sum(lowest)

    def _choose_class(self, label: int) -> tuple[list[int], list[float]]:
        """Anchors of one class and their coverage in each space; from disk if an interrupted run already chose them."""
        file = self.directory / "classes" / f"{label}.json"
        if not file.is_file():
            threat, rows = self.desc.threat, self.classes[label]
            method, count, expansion = threat.selection, threat.per_label, threat.domain_expansion_factor
            anchors = select_class(self.load, self.space, rows, label, method, count, expansion, self.seed)
            covered = coverage(self.load, list(self.spaces.values()), rows, anchors)
            write_json(file, {"rows": anchors.tolist(), **dict(zip(self.spaces, covered, strict=True))})
        kept = read_json(file)
        return kept["rows"], [kept[name] for name in self.spaces]

    def _threat(self, anchors: AnchorSet) -> ProjectedDisplacement:
        return ProjectedDisplacement(self.desc.threat, anchors=anchors.to(self.environment.device)).prepare()

    def _keep_weights(self, anchors: AnchorSet) -> dict[str, Any]:
        """Write class_weights.safetensors; return how they were made, and how many moves they call harmless."""
        from safetensors.torch import save

        hparams, device = self.desc.threat, self.environment.device
        weights = self._calibrated(anchors) if hparams.class_weights_calibrate else self.weights
        if self.environment.is_primary:
            write_bytes(self.directory / "class_weights.safetensors", save({"class_weights": weights}))
        weighted = ProjectedDisplacement(hparams, weighted=True, class_weights=weights, anchors=anchors.to(device))
        below, looked_at = warn_below_one(weighted)
        if below:
            self.environment.log(
                f"note: by these weights {below:,} of {looked_at:,} moves from one anchor to another class's that were "
                "looked at have a threat below 1; large weights call such moves harmless"
            )
        other = ~torch.eye(len(weights), dtype=torch.bool)
        factor = float((weights / self.weights)[other].median())
        return {
            "form": hparams.class_weights_form,
            "factor": factor,
            "moves_below_one": below,
            "moves_looked_at": looked_at,
        }

    def _calibrated(self, anchors: AnchorSet) -> Tensor:
        """The weights scaled such that PD-W and PD have equal medians on training images."""
        train, device = self.data.train, self.environment.device
        usable = (~self.ambiguous).nonzero().flatten()
        generator = torch.Generator().manual_seed(derive_seed(self.desc.seed, self.desc.replicate, "calibration"))
        rows = usable[torch.randperm(len(usable), generator=generator)[:CALIBRATION_IMAGES]]
        images, labels = train.read(rows).to(device), train.labels[rows].to(device)
        return calibrate(self.weights, self._threat(anchors), images, labels).cpu()

    def _inscribed_radius(self, anchors: AnchorSet) -> dict[str, float]:
        """Quantiles over test images of the radius of the l2 ball inside {PD <= 1}, which scales with the threshold."""
        test, threat = self.data.test, self._threat(anchors)
        size, device = min(len(test), RADIUS_EXAMPLES), self.environment.device
        found = []
        for part in stratified_subset(test.labels, size, self.seed).split(part_size(self.data.info.shape)):
            images, labels = test.read(part), test.labels[part]
            usable = ~anchors.equal_with_another_label(images, labels)
            pixels = as_floats(images[usable].to(device))
            found.append(threat.inscribed_radius(pixels, labels[usable].to(device)).cpu())
        radii = torch.cat(found)
        levels = {"lowest": 0.0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "highest": 1.0}
        return {name: round(float(radii.double().quantile(level)), 6) for name, level in levels.items()}

    def _compare_halves(self, anchors: AnchorSet) -> dict[str, Any]:
        """Compare the two half-sets of anchors by the PD of moves to images of other classes.

        Returns their rank correlation, and the median ratio of the larger to the smaller PD: both are 1 for a threat
        that does not depend on which images were drawn. None where there are too few moves.
        """
        from scipy.stats import spearmanr

        method, pair = self.desc.threat.selection, self._moves_by_halves(anchors).double().clamp_min(1e-12)
        if method not in INDEPENDENT_HALVES:
            self.environment.log(
                f"note: the half-sets of --selection={method} are two parts of one choice, not two choices: how much "
                "they differ is not how much the threat depends on the images; --threat_replicate=2 chooses anew"
            )
        number, correlation = len(set(zip(*pair.tolist(), strict=True))), None
        if number > 2 and bool((pair.amin(1) < pair.amax(1)).all()):
            correlation = round(float(spearmanr(pair[0].numpy(), pair[1].numpy()).statistic), 6)
        else:
            self.environment.log(
                "note: no rank correlation of the half-sets: expected at least three moves to test images of another "
                f"class that differ in threat, got {number}; give more test images"
            )
        ratio = round(float((pair.amax(0) / pair.amin(0)).median()), 6) if number else None
        found = {"rank_correlation": correlation, "median_ratio": ratio}
        return {"examples": pair.shape[1], "moves": "random", **found}

    def _moves_by_halves(self, anchors: AnchorSet) -> Tensor:
        """PD by either half-set of random moves between test images of different classes, [2, n]."""
        per_label, test, device = self.desc.threat.per_label, self.data.test, self.environment.device
        half = torch.arange(len(anchors)) % per_label < per_label - per_label // 2
        threats = [self._threat(AnchorSet(anchors.images[of], anchors.labels[of])) for of in (half, ~half)]
        # The rows of a test set are often in the order of their classes: neighbours would be those at borders alone.
        # Twice as many as are wanted, since some images equal an anchor.
        seed = derive_seed(self.desc.seed, self.desc.replicate, "halves")
        first, second = pairs_of_classes(test.labels.cpu(), 2 * HALVES_EXAMPLES, seed)
        measured = torch.empty(2, 0)
        for part in torch.arange(len(first)).split(part_size(self.data.info.shape)):
            images, labels = test.read(first[part]), test.labels[first[part]]
            usable = ~anchors.equal_with_another_label(images, labels)
            x, other = as_floats(images[usable].to(device)), test.pixels(second[part][usable]).to(device)
            found = torch.stack([threat.evaluate(x, labels[usable].to(device), other).cpu() for threat in threats])
            measured = torch.cat([measured, found], 1)[:, :HALVES_EXAMPLES]
            if measured.shape[1] == HALVES_EXAMPLES:
                break
        return measured
