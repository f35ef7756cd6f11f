"""Description of the bundle runner: a finished test run as a file that anyone can check."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from foundations.desc import Desc, StoredRun, builds_on
from foundations.environment import resolve_root
from foundations.errors import UsageError
from foundations.hparam_fields import Hparams, setting, the_path
from runners.checks import file_to_write, names_in
from runners.test.desc import TestDesc

FILE = "claim.zip"


@dataclass(frozen=True)
class BundleHparams(Hparams):
    """The file, and who vouches for it."""

    heading: ClassVar[str] = "Claim"

    output: str = setting(
        "", f"The file to write (default: {FILE} in the run's directory).", path_in=the_path, hashed=False, shows="PATH"
    )
    author: str = setting("anonymous", "Who found the adversarial examples.")
    more_runs: str = setting(
        "",
        "Directories of further test runs of the same model on the same images, comma-separated: their points and sets "
        "go into the file too.",
        hashed=False,  # their hashes enter instead
        shows="PATH,PATH",
    )


@dataclass(frozen=True, kw_only=True)
class BundleDesc(Desc):
    """A claim over a finished test run, named by the flags of test; written anew each time."""

    runner = "bundle"
    purpose = "write a finished test as a file of adversarial examples that anyone can check"
    runner_class = "runners.bundle.runner:BundleRun"
    always_anew = True

    claim: BundleHparams
    test: TestDesc = builds_on()
    more: tuple[StoredRun, ...] = ()

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> BundleDesc:
        """Build the description from flags; raises UsageError for a run that cannot become a claim."""
        made, root = super().from_flags(values), resolve_root(values.get("root_dir", ""))
        paths = [Path(name).expanduser() for name in names_in(made.claim.more_runs)]
        return dataclasses.replace(made, more=tuple(StoredRun.read(path, root, "test") for path in paths))

    def __post_init__(self) -> None:
        if not self.claim.author.strip() or not self.claim.author.isprintable():
            raise UsageError(f"--author: expected a name, got {self.claim.author!a}")
        if self.claim.output:
            file_to_write("output", self.claim.output)
        if not (self.test.testing.adv_eval or self.test.testing.N_adv_eval):
            raise UsageError("bundle: expected a test under attack: --adv_eval or --N_adv_eval")

    @property
    def dataset_name(self) -> str:
        return self.test.dataset_name

    @property
    def name(self) -> str:
        return self.test.name

    def hashed(self) -> dict[str, Any]:
        more = [{"hash": run.hash, "replicate": run.replicate} for run in self.more]
        return super().hashed() | ({"more": more} if more else {})

    def flags(self) -> dict[str, Any]:
        return super().flags() | {"more_runs": ",".join(run.relative for run in self.more)}

    def opened(self, root: Path) -> Path:
        return Path(self.claim.output) if self.claim.output else self.directory(root) / FILE

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """The claims of the file, the images that were lost, and its size."""
        lost = [
            f"{words}: {row['lost']} of {row['attacked']} images that were broken do not survive rounding to 8 bits"
            for words, row in result["sets"].items()
            if row["lost"]
        ]
        size = f"claim {result['claim'][:12]}: {result['points']} points, {result['bytes'] / 1e6:.2f} MB"
        return "\n".join([*result["verdicts"], *lost, size])
