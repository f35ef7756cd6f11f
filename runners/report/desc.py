"""Description of the report runner: a page over finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from datasets.registry import dataset_info
from foundations.desc import Desc
from foundations.errors import UsageError
from foundations.hparam_fields import Hparams, setting, the_path
from foundations.input_hparams import DatasetHparams
from runners.checks import folder_to_write

PAGE = "report.html"
KIT = "human_kit"  # folder beside the page
CLAIMS = "claims"  # folder below the root


@dataclass(frozen=True)
class KitHparams(Hparams):
    """The files that a report writes beside its page."""

    heading: ClassVar[str] = "A study with people"

    human_kit: bool = setting(
        False,
        "Also write the folder human_kit/: a page that asks people which class they see in pairs of images that "
        "evaluate_threat measured, and the pairs, which --human reads together with their answers.",
        hashed=False,
    )


@dataclass(frozen=True)
class SiteHparams(Hparams):
    """A folder to publish, made of claims in place of runs."""

    heading: ClassVar[str] = "A site of claims"

    site: str = setting(
        "",
        "Write no report but a leaderboard of claims, a page and a model card for each, and leaderboard.json into this "
        "folder. Other files there are left alone.",
        path_in=the_path,
        hashed=False,
    )
    claims: str = setting(
        "",
        f"Files of claims, comma-separated (default: all *.zip in {CLAIMS}/ below the root).",
        hashed=False,
        shows="FILE,FILE",
    )
    site_url: str = setting(
        "", "The address at which the folder will be published, for model cards.", hashed=False, shows="URL"
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
    site: SiteHparams = SiteHparams()

    def __post_init__(self) -> None:
        if (self.site.claims or self.site.site_url) and not self.site.site:
            raise UsageError("--claims and --site_url: expected --site=DIR too, the folder to write")
        if self.site.site_url and not self.site.site_url.startswith(("https://", "http://")):
            raise UsageError(f"--site_url: expected an address that begins with https://, got {self.site.site_url!r}")
        if self.site.site and (self.kit.human_kit or self.dataset_name):
            raise UsageError("--site: expected neither --human_kit nor --dataset_name: claims tell their data sets")
        if self.site.site:
            folder_to_write("site", self.site.site)
        if self.dataset_name:
            dataset_info(self.dataset_name)
        elif self.kit.human_kit:
            raise UsageError("--human_kit: expected --dataset_name, got none: a study is about one data set")

    def directory(self, root: Path) -> Path:
        return root / "reports" / ("site" if self.site.site else self.dataset_name or "all")

    def opened(self, root: Path) -> Path:
        return Path(self.site.site) / "index.html" if self.site.site else self.directory(root) / PAGE

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """The number of runs that the page shows, and the main findings; or what the site shows."""
        if "site" in result:
            site = result["site"]
            tables = f"{site['tables']} table{'s' if site['tables'] > 1 else ''}"
            return f"site of {site['claims']} claims in {tables}, {site['verified']} verified here"
        counts = ", ".join(f"{count} {runner}" for runner, count in result["counts"].items())
        return "\n".join([f"report over {counts}", *result["found"], *_kit_lines(result.get("kit"))])


def _kit_lines(kit: dict[str, Any] | None) -> list[str]:
    if not kit:
        return []
    return [
        f"a study of {kit['pairs']} pairs for people: {kit['page']}; put the answers (*.csv) into that FOLDER, then: "
        f"{kit['then']}"
    ]
