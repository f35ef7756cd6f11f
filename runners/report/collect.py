"""Search for the finished runs of a data set."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundations.desc import StoredRun
from foundations.errors import NonisotropicError
from foundations.run_directory import RunDirectory


@dataclass(frozen=True)
class FinishedRun:
    """A complete run: its directory, its hparams.json and its result.json.

    apart   flags that tell its model from others of the same name (`runners/report/labels.py`)
    """

    path: Path
    relative: str
    hparams: dict[str, Any]
    result: dict[str, Any]
    apart: str = ""

    @property
    def label(self) -> str:
        """The name in tables, with the replicate number of the model or measurement unless that is 1."""
        replicate = self.model[1] if self.model else self.hparams["replicate"]
        number = f" #{replicate}" if replicate != 1 else ""
        return self.hparams["name"] + number + (f" ({self.apart})" if self.apart else "")

    @property
    def model(self) -> tuple[str, int] | None:
        """Hash and replicate of the model that was trained, or tested; None where there is none."""
        if self.hparams.get("runner") == "train":
            return self.hparams["hash"], self.hparams["replicate"]
        tested = self.hparams["hashed"].get("train") if self.hparams.get("runner") == "test" else None
        return (tested["hash"], tested["replicate"]) if tested else None

    @property
    def model_name(self) -> str:
        """The name of that model, whatever images it was tested on."""
        return self.hparams["name"].removesuffix("" if self.split == "test" else f"_{self.split}")

    @property
    def split(self) -> str:
        """The split whose images a test run measured."""
        return self.hparams["hashed"].get("testing", {}).get("split", "test")

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        return self.hparams.get("command", "")


def finished_runs(
    root: Path, dataset_name: str, runner: str, notice: Callable[[str], None] = lambda told: None
) -> list[FinishedRun]:
    """Every complete run of a runner on a data set, in the order of their directories.

    notice   called with a message for each run that is left out because it cannot be read
    """
    files = sorted((root / "runs" / dataset_name / runner).glob("*/replicate_*/result.json"))
    found = [_read(file.parent, root, notice) for file in files]
    return [run for run in found if run is not None]


def _read(path: Path, root: Path, notice: Callable[[str], None]) -> FinishedRun | None:
    try:
        hparams, result = StoredRun.read(path, root, path.parent.parent.name).content, RunDirectory(path).result()
    except NonisotropicError as error:
        notice(f"left out: {error}")
        return None
    return FinishedRun(path, str(path.relative_to(root)), hparams, result)


def read_metrics(run: FinishedRun) -> list[dict[str, Any]]:
    """The epochs of a training run, from metrics.jsonl; empty if the file is missing or not valid."""
    file = run.path / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    except (OSError, ValueError, RecursionError):
        return []
    return rows if all(isinstance(row, dict) and "epoch" in row for row in rows) else []


def all_finished_runs(root: Path, dataset_name: str, notice: Callable[[str], None]) -> dict[str, list[FinishedRun]]:
    """The finished runs of every runner on a data set; an empty list for a runner that has none."""
    found: dict[str, list[FinishedRun]] = defaultdict(list)
    for folder in sorted((root / "runs" / dataset_name).glob("*")):
        if runs := finished_runs(root, dataset_name, folder.name, notice):
            found[folder.name] = runs
    return found


def data_sets(root: Path) -> list[str]:
    """The names of the data sets that have any run."""
    return sorted(folder.name for folder in (root / "runs").glob("*") if folder.is_dir())
