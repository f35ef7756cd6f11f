"""Description of the compute_threat runner: a choice of anchors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundations.desc import Desc, digest
from foundations.hparam_fields import split_kind
from foundations.input_hparams import DatasetHparams, ThreatHparams
from foundations.results import rounded
from runners.checks import check_dataset, truly_labelled

NOT_YET_THEN = ("class_weights_form", "class_weights_calibrate", "selection_space")


@dataclass(frozen=True, kw_only=True)
class ThreatDesc(Desc):
    """A choice of anchors."""

    runner = "compute_threat"
    purpose = "choose anchors: a few training images of each class"
    runner_class = "runners.compute_threat.runner:ComputeThreat"
    replicate_flag = "threat_replicate"

    dataset: DatasetHparams
    threat: ThreatHparams

    def __post_init__(self) -> None:
        check_dataset(self.dataset)
        object.__setattr__(self, "dataset", truly_labelled(self.dataset))

    @property
    def name(self) -> str:
        return f"{self.threat.selection}_{self.threat.per_label}"

    def hashed(self) -> dict[str, Any]:
        # 2: steps between classes are those of the shortest way.
        wordnet = {"wordnet_version": 2} if split_kind(self.threat.class_weights)[0] == "wordnet" else {}
        return super().hashed() | wordnet

    def earlier_version(self, root: Path) -> str:
        """A sentence for the user if an earlier version kept these weights, which it used the other way round."""
        if not self.threat.class_weights:
            return ""
        threat = {name: value for name, value in self.threat.hashed().items() if name not in NOT_YET_THEN}
        folder = f"{self.name}_{digest({**super().hashed(), 'threat': threat})}"
        if not (self.directory(root).parents[1] / folder).is_dir():
            return ""
        return (
            " (an earlier version made anchors with these weights, but near classes were less of a threat; "
            "--class_weights_form=similarity --class_weights_calibrate --selection_space=raw keeps that)"
        )

    def is_satisfied_by(self, result: dict[str, Any]) -> bool:
        # Halves without `moves` were compared on neighbours in the test set.
        halves_missing = self.threat.halves and "moves" not in result.get("halves", {})
        refused = self.threat.strict and result["dropped"]["count"]
        return not halves_missing and not refused

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """Coverage, the number of images left out, and the radius of the balls inside the sets."""
        key = "coverage_normalised" if "coverage_normalised" in result else "coverage"
        worst, of = min(result[key], key=result[key].get), "normalised images" if "_" in key else "raw pixels"
        radius, halves = result["inscribed_radius"], result.get("halves")
        stability = ""
        if halves:
            correlation, ratio = (
                "none" if halves[name] is None else rounded(halves[name], 3)
                for name in ("rank_correlation", "median_ratio")
            )
            stability = (
                f"\nthe two half-sets: rank correlation {correlation}, median ratio {ratio} over "
                f"{halves['examples']} moves to another class"
            )
        return (
            f"{result['num_anchors']} anchors, {result['per_label']} of each class of {result['dataset_name']}; "
            f"lowest coverage (cosine similarity of {of} to an anchor) {rounded(result[key][worst], 3)}, "
            f"class {worst}; "
            f"{result['dropped']['count']} ambiguous images left out\n"
            f"l2 ball inside {{PD <= t}}: radius {radius['median']:.3g} t (median of the test images), "
            f"{radius['lowest']:.3g} t to {radius['highest']:.3g} t{stability}"
        )


def without_weights(anchors: ThreatDesc) -> ThreatDesc:
    return dataclasses.replace(anchors, threat=dataclasses.replace(anchors.threat, class_weights=""))
