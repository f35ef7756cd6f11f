"""compute_threat: choose anchors, a few training images of each class."""

from __future__ import annotations

from typing import Any

from foundations.desc import derive_seed
from foundations.errors import RunError
from runners.base import Runner
from runners.inputs import read_data
from runners.pictures import write_contact_sheet
from threat_specification.anchors import AnchorSet
from threat_specification.selection import coverage, select, shared_between_classes


class ComputeThreat(Runner):
    """Writes anchors.safetensors and anchors.png (a row for each class)."""

    def prepare(self) -> None:
        self.data = read_data(self.desc.dataset_name, self.environment)
        threat = self.desc.threat
        train = self.data.train
        self.ambiguous = shared_between_classes(train.images, train.labels)
        self.rows = select(
            train.images,
            train.labels,
            threat.selection,
            threat.per_label,
            threat.domain_expansion_factor,
            derive_seed(self.desc.seed, self.desc.replicate, "anchors"),
            allowed=~self.ambiguous,
        )
        if not len(self.rows):
            raise RunError(f"{self.desc.dataset_name} has no image that belongs to one class alone")

    def run(self) -> dict[str, Any]:
        train, per_label = self.data.train, self.desc.threat.per_label
        anchors = AnchorSet(train.images[self.rows], train.labels[self.rows], self.rows)
        if self.environment.is_primary:
            anchors.save(self.directory / "anchors.safetensors")
            names = self.data.info.classes
            write_contact_sheet(self.directory / "anchors.png", anchors.images, per_label, names)
        dropped = self.ambiguous.nonzero().flatten().tolist()
        classes = self.data.info.classes
        lowest = coverage(train.images, train.labels, self.rows)
        return {
            "num_anchors": len(anchors),
            "per_label": per_label,
            "coverage": {classes[label]: round(value, 6) for label, value in enumerate(lowest)},
            "dropped": {"count": len(dropped), "indices": dropped},
            "digest": anchors.digest,
        }
