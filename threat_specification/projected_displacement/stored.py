"""Anchors and class weights of a finished compute_threat run, found by the name of its data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundations.desc import StoredRun
from foundations.digests import forget
from foundations.environment import below_root, resolve_root
from foundations.errors import RunError, UsageError
from foundations.input_hparams import DatasetHparams, ThreatHparams
from foundations.program import COMMAND
from foundations.run_directory import RunDirectory

RUNNER = "compute_threat"


def directory_of(name: str, weighted: bool = False, root: str = "", replicate: int = 1) -> Path:
    """The directory of a compute_threat run.

    name      of a data set: the run with the default flags of compute_threat; or the path of a run
    weighted  a run that was given class weights, of whatever kind
    root      as --root_dir (default: NONISOTROPIC_HOME, else output/)
    """
    if (Path(name) / "hparams.json").is_file():
        path = Path(name)
        StoredRun.read(path, path, RUNNER)
    else:
        forget()  # in a notebook, images may have changed since the last call
        with below_root(root):
            path = _with_defaults(name, weighted, resolve_root(""), replicate)
    RunDirectory(path).result()  # raises RunError if it was edited
    if weighted and not (path / "class_weights.safetensors").is_file():
        raise UsageError(f"weighted PD: expected a {RUNNER} run with --class_weights, got {path}")
    return path


def _with_defaults(name: str, weighted: bool, root: Path, replicate: int) -> Path:
    found = [
        run.path
        for file in sorted((root / "runs" / name / RUNNER).glob(f"*/replicate_{replicate}/result.json"))
        if _is_default((run := StoredRun.read(file.parent, root, RUNNER)).content["hashed"], name, weighted)
    ]
    if not found:
        words = f"{COMMAND} {RUNNER} --dataset_name={name}"
        words += " --class_weights=FILE" if weighted else ""
        words += f" --threat_replicate={replicate}" if replicate != 1 else ""
        raise RunError(f"no anchors of {name} with the defaults below {root}; make them: {words}, or name a run's path")
    if len(found) > 1:
        raise UsageError(f"several runs fit {name}: {', '.join(map(str, found))}; name one by its path")
    return found[0]


def _is_default(hashed: dict[str, Any], name: str, weighted: bool) -> bool:
    """True if a run has the defaults of compute_threat, but for the class weights of the weighted form."""
    threat, expected = dict(hashed["threat"]), ThreatHparams().hashed()
    if weighted and threat.get("class_weights"):
        expected |= {key: value for key, value in threat.items() if key.startswith("class_weights")}
    elif weighted:
        return False
    return threat == expected and hashed["dataset"] == DatasetHparams(dataset_name=name).hashed() and not hashed["seed"]
