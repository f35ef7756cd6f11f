"""Description of the report runner: a page over finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from datasets.registry import dataset_info
from foundations.desc import Desc
from foundations.errors import UsageError
from foundations.hparam_fields import Hparams, setting
from foundations.hparams import DatasetHparams

PAGE = "report.html"
KIT = "human_kit"  # folder beside the page


@dataclass(frozen=True)
class KitHparams(Hparams):
    """The files that a report writes beside its page."""

    heading: ClassVar[str] = "A study with people"

    human_kit: bool = setting(
        False,
        "Write a page, too, that asks people which class they see in pairs of images of a measurement, and the pairs "
        "that evaluate_threat --human reads with their answers.",
        hashed=False,
    )


@dataclass(frozen=True, kw_only=True)
class ReportDesc(Desc):
    """A page over every finished run of a data set, or of all data sets if none is named."""

    runner = "report"
    purpose = "one page of tables and pictures over all finished runs"
    runner_class = "runners.report.runner:Report"
    always_anew = True

    dataset: DatasetHparams
    kit: KitHparams = KitHparams()

    def __post_init__(self) -> None:
        if self.dataset_name:
            dataset_info(self.dataset_name)
        elif self.kit.human_kit:
            raise UsageError("--human_kit: expected --dataset_name, got none: a study is about one data set")

    def directory(self, root: Path) -> Path:
        return root / "reports" / (self.dataset_name or "all")

    def opened(self, root: Path) -> Path:
        return self.directory(root) / PAGE

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """The number of runs that the page shows, and the main findings."""
        counts = ", ".join(f"{count} {runner}" for runner, count in result["counts"].items())
        return "\n".join([f"report over {counts}", *result["found"], *_kit_lines(result.get("kit"))])


def _kit_lines(kit: dict[str, Any] | None) -> list[str]:
    if not kit:
        return []
    return [
        f"a study of {kit['pairs']} pairs for people: {kit['page']}; put the answers (*.csv) into that FOLDER, then: "
        f"{kit['then']}"
    ]
