"""Description of the compute_threat runner: a choice of anchors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from foundations.desc import Desc
from foundations.hparams import DatasetHparams, ThreatHparams
from runners.checks import check_dataset


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

    @property
    def name(self) -> str:
        return f"{self.threat.selection}_{self.threat.per_label}"

    def is_satisfied_by(self, result: dict[str, Any]) -> bool:
        halves_missing = self.threat.halves and "halves" not in result
        refused = self.threat.strict and result["dropped"]["count"]
        return not halves_missing and not refused

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """Coverage, the number of images left out, and the radius of the balls inside the sets."""
        worst = min(result["coverage"], key=result["coverage"].get)
        radius, halves = result["inscribed_radius"], result.get("halves")
        stability = (
            f"\nthe two half-sets: rank correlation {halves['rank_correlation']:.3f}, median ratio "
            f"{halves['median_ratio']:.3f} over {halves['examples']} moves to another class"
            if halves
            else ""
        )
        return (
            f"{result['num_anchors']} anchors, {result['per_label']} of each class of {result['dataset_name']}; "
            f"lowest coverage (cosine similarity to an anchor) {result['coverage'][worst]:.3f}, class {worst}; "
            f"{result['dropped']['count']} ambiguous images left out\n"
            f"l2 ball inside {{PD <= t}}: radius {radius['median']:.3g} t (median of the test images), "
            f"{radius['lowest']:.3g} t to {radius['highest']:.3g} t{stability}"
        )


def without_weights(anchors: ThreatDesc) -> ThreatDesc:
    return dataclasses.replace(anchors, threat=dataclasses.replace(anchors.threat, class_weights=""))
