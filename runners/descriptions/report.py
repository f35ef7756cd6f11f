"""report: a page over finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datasets.registry import dataset_info
from foundations.desc import Desc
from foundations.hparams import DatasetHparams


@dataclass(frozen=True, kw_only=True)
class ReportDesc(Desc):
    """A page over every finished run of a data set, or of all data sets when none is named."""

    runner = "report"
    always_anew = True

    dataset: DatasetHparams

    def __post_init__(self) -> None:
        if self.dataset_name:
            dataset_info(self.dataset_name)

    def directory(self, root: Path) -> Path:
        return root / "reports" / (self.dataset_name or "all")
