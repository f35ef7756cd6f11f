"""Finding the finished runs of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundations.files import read_json
from foundations.run_directory import RunDirectory

RUNNERS = ("test", "train", "compute_threat", "evaluate_threat", "multi_test")


@dataclass(frozen=True)
class FinishedRun:
    """A complete run: where it is, what was hashed, what came out."""

    path: Path
    relative: str
    hparams: dict[str, Any]
    result: dict[str, Any]

    @property
    def label(self) -> str:
        """What tables call it: the name, and the replicate where there are several."""
        replicate = self.hparams["replicate"]
        return self.hparams["name"] + (f" #{replicate}" if replicate != 1 else "")

    @property
    def command(self) -> str:
        """What repeats it."""
        return self.hparams.get("command", "")


def finished_runs(root: Path, dataset_name: str, runner: str) -> list[FinishedRun]:
    """Every complete run of a runner on a data set, in the order of their directories."""
    found = []
    for file in sorted((root / "runs" / dataset_name / runner).glob("*/replicate_*/result.json")):
        directory = RunDirectory(file.parent)
        hparams = read_json(directory / "hparams.json")
        found.append(FinishedRun(file.parent, str(file.parent.relative_to(root)), hparams, directory.result()))
    return found


def data_sets(root: Path) -> list[str]:
    """Those with any run."""
    return sorted(folder.name for folder in (root / "runs").glob("*") if folder.is_dir())
