"""download_pretrained: weights of RobustBench's zoo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foundations.desc import Desc
from foundations.download_hparams import DownloadHparams
from foundations.hparams import DatasetHparams
from runners.descriptions.checks import check_dataset


@dataclass(frozen=True, kw_only=True)
class DownloadDesc(Desc):
    """Weights of RobustBench's zoo below the root; which of them are there may have changed."""

    runner = "download_pretrained"
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
