"""Description of the merge runner: one claim of several."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from foundations.desc import Desc, digest
from foundations.digests import content_digest
from foundations.errors import UsageError
from foundations.hparam_fields import Hparams, setting, the_path
from runners.bundle.desc import FILE
from runners.checks import file_to_write


@dataclass(frozen=True)
class MergeHparams(Hparams):
    """The file that is written."""

    heading: ClassVar[str] = "Claim"

    output: str = setting(
        "",
        f"The file to write (default: {FILE} in a folder below the root).",
        path_in=the_path,
        hashed=False,
        shows="PATH",
    )


@dataclass(frozen=True, kw_only=True)
class MergeDesc(Desc):
    """The merging of claims about one model on the same images and sets; their order does not matter."""

    runner = "merge"
    purpose = "make one claim of several about the same model: for each image, the strongest"
    runner_class = "runners.merge.runner:Merge"
    takes = "A.zip B.zip ..."
    always_anew = True

    claim: MergeHparams
    files: tuple[str, ...] = ()

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> MergeDesc:
        made = dataclasses.replace(super().from_flags(values), files=values.get("files", ()))
        if len(made.files) < 2:
            raise UsageError("merge: expected two files or more, as in: python nonisotropic.py merge A.zip B.zip")
        if made.claim.output:
            file_to_write("output", made.claim.output)
        return made

    @property
    def dataset_name(self) -> str:
        return ""

    def directory(self, root: Path) -> Path:
        paths = [Path(file).expanduser() for file in self.files]
        contents = sorted(content_digest(str(path)) if path.is_file() else str(path) for path in paths)
        return root / "merged" / digest(contents)

    def opened(self, root: Path) -> Path:
        return Path(self.claim.output) if self.claim.output else self.directory(root) / FILE

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """The figures before and after."""
        rows = [f"{words}: {figures}" for words, figures in result["figures"].items()]
        return "\n".join([*rows, f"claim {result['claim'][:12]} of {', '.join(result['authors'])}; not verified here"])
