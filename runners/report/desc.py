"""Description of the report runner: a page over finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.registry import dataset_info
from foundations.desc import Desc
from foundations.hparams import DatasetHparams

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class ReportDesc(Desc):
    """A page over every finished run of a data set, or of all data sets if none is named."""

    runner = "report"
    purpose = "one page of tables and pictures over all finished runs"
    runner_class = "runners.report.runner:Report"
    always_anew = True

    dataset: DatasetHparams

    def __post_init__(self) -> None:
        if self.dataset_name:
            dataset_info(self.dataset_name)

    def directory(self, root: Path) -> Path:
        return root / "reports" / (self.dataset_name or "all")

    def opened(self, root: Path) -> Path:
        return self.directory(root) / PAGE

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """The number of runs that the page shows, and the main findings."""
        counts = ", ".join(f"{count} {runner}" for runner, count in result["counts"].items())
        return "\n".join([f"report over {counts}", *result["found"]])
