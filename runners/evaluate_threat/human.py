"""Threats of changes that people judged, and how well each threat tells where they see another class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch

from datasets.base import Dataset
from datasets.human_answers import Agreement, agreement_of
from datasets.human_pairs import NOBODY, HumanPairs, read_pairs
from datasets.human_sets import human_files
from foundations.environment import Environment
from foundations.errors import UsageError
from foundations.files import write_text
from foundations.pixels import as_floats
from foundations.results import csv_table
from foundations.run_directory import RunDirectory
from runners.evaluate_threat import human_charts
from runners.evaluate_threat.anchor_variants import as_bytes
from runners.evaluate_threat.human_desc import human_parts
from runners.plots import write_figure
from testing.judged import clustered_auroc
from testing.perturbed import Perturbation, PerturbationEvaluation
from testing.separation import Bootstrap
from testing.shards import ShardStore, evaluate_in_shards
from threat_specification import Measure, ProjectedDisplacement
from threat_specification.projected_displacement.masks import FileMasks

ANY_LABEL = -1
NO_MASKS = "its masks come from a file, which has none for these images"


@dataclass(frozen=True)
class People:
    """Pairs of images with what people see, and the measures to compare.

    left_out      why -> number of pairs
    not_measured  measure -> why
    """

    pairs: HumanPairs
    measures: dict[str, Measure]
    left_out: dict[str, int]
    not_measured: dict[str, str]
    agreement: Agreement | None

    @classmethod
    def read(cls, desc: Any, data: Dataset, measures: dict[str, Measure]) -> People | None:
        """The pairs that --human names; None without the flag. Raises UsageError for what does not fit the data."""
        if not desc.human.human:
            return None
        path, answers = human_files(desc.human.human)
        info, classes = data.info, len(data.info.classes)
        # Our kit shows titles; a file of one's own may hold the names of the folders as well.
        names = ([info.title(label) for label in range(classes)], info.classes)
        pairs = read_pairs(path, info.shape, classes, needs_people=not answers, names=names)
        agreement = agreement_of(pairs, answers, classes) if answers else None
        if agreement is not None:
            pairs = replace(pairs, people=agreement.people)
        not_measured = {name: NO_MASKS for name, measure in measures.items() if _has_file_masks(measure)}
        measures = {name: measure for name, measure in measures.items() if name not in not_measured}
        chosen, left_out = _usable(pairs, measures)
        if not chosen.any():
            raise UsageError(f"--human={desc.human.human}: expected pairs with an answer, got none that can be used")
        return cls(pairs.rows(chosen), measures, left_out, not_measured, agreement)

    def threats(self, desc: Any, environment: Environment, store: ShardStore) -> dict[str, numpy.ndarray]:
        """Each measure of each pair, [n]; on every process."""
        device = environment.device
        clean, changed = (_floats(images) for images in (self.pairs.clean, self.pairs.changed))
        judged = Perturbation(
            "people", 1, "people", "", "", lambda shard: (changed[shard.index.cpu()].to(device), None)
        )
        rows = evaluate_in_shards(
            lambda rows: clean[rows.cpu()].to(device),
            torch.from_numpy(self.pairs.label).to(device),
            torch.arange(len(self.pairs), device=device),
            desc.perturbation.images_per_shard,
            [PerturbationEvaluation([judged], self.measures)],
            environment,
            store,
            show=False,
            in_lockstep=desc.anchors.threat.shard_anchors,
        )
        return {name: values[:, 0] for name, values in rows.items()}

    def describe(self, threats: dict[str, numpy.ndarray], resamples: int, seed: int) -> dict[str, Any]:
        """The field `human` of result.json."""
        assert self.pairs.people is not None
        changed, images = self.pairs.people != self.pairs.label, self.pairs.images()
        bootstrap = Bootstrap.over(int(images.max()) + 1, resamples, seed)

        def part(chosen: numpy.ndarray, groups: numpy.ndarray | None = None) -> dict[str, Any]:
            found = {
                name: clustered_auroc(values[chosen], changed[chosen], images[chosen], bootstrap, groups)
                for name, values in threats.items()
            }
            return {
                "num_pairs": int(chosen.sum()),
                "changed": int(changed[chosen].sum()),
                "auroc": {name: interval.describe() for name, interval in found.items() if interval is not None},
            }

        everything, group = numpy.ones(len(self.pairs), bool), self.pairs.group
        return {
            "num_images": len(numpy.unique(images)),
            **part(everything),
            "threats": list(threats),
            "within_groups": part(everything, group),
            "by_group": {name: part(group == name) for name in dict.fromkeys(group.tolist())},
            "left_out": self.left_out,
            "not_measured": self.not_measured,
            **({"study": self.agreement.describe()} if self.agreement is not None else {}),
        }

    def write(self, directory: RunDirectory, threats: dict[str, numpy.ndarray], human: dict[str, Any]) -> None:
        """Write human.csv (the AUROCs), human_pairs.csv (a line for each pair) and figures."""
        lines: list[list[Any]] = [["pairs", "threat", "auroc", "low", "high", "number", "changed"]]
        for title, part in human_parts(human).items():
            for name, found in part["auroc"].items():
                lines.append([title, name, *found.values(), part["num_pairs"], part["changed"]])
        write_text(directory / "human.csv", csv_table(lines))
        write_text(directory / "human_pairs.csv", csv_table(self._rows(threats)))
        write_figure(directory / "human", lambda: human_charts.aurocs(human), ("png", "pdf"))
        write_figure(directory / "human_pairs", lambda: human_charts.pairs(self.pairs, threats), ("png", "pdf"))

    def _rows(self, threats: dict[str, numpy.ndarray]) -> Sequence[Sequence[Any]]:
        assert self.pairs.people is not None
        told = [self.pairs.images(), self.pairs.group, self.pairs.change, self.pairs.label, self.pairs.people]
        values = [[f"{value:.6g}" for value in column] for column in threats.values()]
        columns = [column.tolist() for column in told] + values
        return [["image", "group", "change", "label", "people", *threats], *zip(*columns, strict=True)]


def _has_file_masks(measure: Measure) -> bool:
    return isinstance(measure, ProjectedDisplacement) and isinstance(measure.mask_source, FileMasks)


def _floats(images: numpy.ndarray) -> torch.Tensor:
    return as_floats(torch.from_numpy(images))


def _usable(pairs: HumanPairs, measures: dict[str, Measure]) -> tuple[numpy.ndarray, dict[str, int]]:
    """[n] which pairs are compared, and how many are not, by reason; each pair has one."""
    assert pairs.people is not None
    reasons = {
        "trials of attention": pairs.catch != NOBODY,
        "class not certain": ~pairs.certain,
        "people see no class, or do not agree": pairs.people == NOBODY,
        "the image is an anchor": _is_anchor(pairs, measures),
    }
    if (empty := _has_empty_mask(pairs, measures)).any():
        reasons["the image has an empty mask"] = empty
    chosen, left_out = numpy.ones(len(pairs), bool), {}
    for why, rows in reasons.items():
        left_out[why] = int((chosen & rows).sum())
        chosen &= ~rows
    return chosen, left_out


def _has_empty_mask(pairs: HumanPairs, measures: dict[str, Measure]) -> numpy.ndarray:
    """[n] whether a threat has an empty mask of the clean image: it has no size of its changes."""
    found = numpy.zeros(len(pairs), bool)
    for measure in measures.values():
        if isinstance(measure, ProjectedDisplacement) and measure.segmented:
            found |= measure.without_object(_floats(pairs.clean)).cpu().numpy()
    return found


def _is_anchor(pairs: HumanPairs, measures: dict[str, Measure]) -> numpy.ndarray:
    """[n] whether the clean image equals an anchor, of whatever class: a threat would be judged on its own data."""
    found = numpy.zeros(len(pairs), bool)
    labels = torch.full((len(pairs),), ANY_LABEL)
    for measure in measures.values():
        if isinstance(measure, ProjectedDisplacement) and measure.anchors is not None:
            pixels = _floats(pairs.clean)
            images = as_bytes(pixels) if measure.anchors.images.dtype == torch.uint8 else pixels
            found |= measure.equals_other_anchor(images, labels).cpu().numpy()
    return found
