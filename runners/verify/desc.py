"""Description of the verify runner: a check of one claim."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from foundations.desc import Desc
from foundations.digests import content_digest
from foundations.errors import UsageError
from foundations.hparam_fields import Hparams, setting, the_path
from foundations.input_hparams import ModelHparams
from runners.test.desc import ModelByDirectory


@dataclass(frozen=True)
class VerifyHparams(Hparams):
    """The place of the claim's data set; its name stands in the file."""

    heading: ClassVar[str] = "Data set"

    data_dir: str = setting(
        "", "The data set's folder, or its parent (else data/ below the root).", path_in=the_path, hashed=False
    )
    download: bool = setting(False, "Fetch the data set into --data_dir where it is not there.", hashed=False)


@dataclass(frozen=True, kw_only=True)
class VerifyDesc(Desc):
    """The check of one file. The model is that of the claim, found below the root, or the one that flags name."""

    runner = "verify"
    purpose = "check a claim by forward passes and threats alone; exit code 0 if it holds"
    runner_class = "runners.verify.runner:Verify"
    takes = "CLAIM.zip"
    always_anew = True

    place: VerifyHparams
    model: ModelHparams
    by_directory: ModelByDirectory
    files: tuple[str, ...] = ()

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> VerifyDesc:
        return dataclasses.replace(super().from_flags(values), files=values.get("files", ()))

    def __post_init__(self) -> None:
        if len(self.files) > 1:
            raise UsageError(f"verify: expected one file, got {' '.join(self.files)}")

    @property
    def file(self) -> Path:
        """The file to check."""
        if not self.files:
            raise UsageError("verify: expected the file of a claim, as in: python nonisotropic.py verify CLAIM.zip")
        return Path(self.files[0]).expanduser()

    @property
    def dataset_name(self) -> str:
        return ""

    def directory(self, root: Path) -> Path:
        """The folder that keeps what was found; another one for another content."""
        digest = f"_{content_digest(str(self.file))[:12]}" if self.file.is_file() else ""
        return root / "verified" / f"{self.file.stem}{digest}"

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """The subject of the claim, then one sentence for each claimed set."""
        return "\n".join([result["about"], *result["verdicts"]])
