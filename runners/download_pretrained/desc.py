"""Description of the download_pretrained runner: weights of RobustBench's zoo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from foundations.desc import Desc
from foundations.hparam_fields import Hparams, in_range, one_of, setting, the_path
from foundations.input_hparams import DatasetHparams
from foundations.results import markdown_table, rounded
from runners.checks import check_dataset


@dataclass(frozen=True)
class DownloadHparams(Hparams):
    """The weights to fetch, and their source."""

    heading: ClassVar[str] = "Download"

    threat_model: str = setting(
        "Linf", "The part of the zoo: Linf, L2 or corruptions.", check=one_of("Linf", "L2", "corruptions")
    )
    names: str = setting(
        "", "Models by name, comma-separated (default: a short selection).", hashed=False, shows="NAME,NAME"
    )
    all: bool = setting(False, "All models of the zoo for this data set and threat model.", hashed=False)
    list: bool = setting(False, "List the models with their published accuracies, and fetch nothing.", hashed=False)
    verify: bool = setting(False, "Compare what is there with the checksums recorded, and fetch nothing.", hashed=False)
    source_dir: str = setting(
        "", "Take the files from this folder instead of the internet.", path_in=the_path, hashed=False
    )
    mirror: str = setting(
        "", "Fetch from URL/<data set>/<threat model>/<name>.pt instead of Google Drive.", hashed=False, shows="URL"
    )
    parallel: int = setting(2, "Files fetched at the same time.", check=in_range(1, 16), hashed=False)


@dataclass(frozen=True, kw_only=True)
class DownloadDesc(Desc):
    """Weights of RobustBench's zoo below the root; runs every time, since the files there may have changed."""

    runner = "download_pretrained"
    purpose = "fetch robust models of RobustBench's zoo"
    runner_class = "runners.download_pretrained.runner:DownloadPretrained"
    always_anew = True

    dataset: DatasetHparams
    download: DownloadHparams

    def __post_init__(self) -> None:
        check_dataset(self.dataset)

    @property
    def threat_model(self) -> str:
        return self.download.threat_model

    def directory(self, root: Path) -> Path:
        return root / "models" / self.dataset_name / self.threat_model

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """A table of the models of the zoo with their published accuracies and their state."""
        rows = [
            [
                model["name"],
                *("-" if model[key] is None else rounded(model[key]) for key in ("clean", "robust")),
                model["state"],
            ]
            for model in result["models"]
        ]
        return markdown_table(["model", "published clean", "published robust", "state"], rows)
