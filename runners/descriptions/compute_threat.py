"""compute_threat: a choice of anchors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from foundations.desc import Desc
from foundations.hparams import DatasetHparams, ThreatHparams
from runners.descriptions.checks import check_dataset


@dataclass(frozen=True, kw_only=True)
class ThreatDesc(Desc):
    """A choice of anchors."""

    runner = "compute_threat"
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


def without_weights(anchors: ThreatDesc) -> ThreatDesc:
    return dataclasses.replace(anchors, threat=dataclasses.replace(anchors.threat, class_weights=""))
