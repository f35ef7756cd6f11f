"""The origin of the model and the data of a claim, in words that another machine understands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundations.desc import StoredRun
from foundations.files import read_json
from foundations.input_hparams import DatasetHparams, ModelHparams
from models.robustbench_registry import ZooModel
from models.sources import zoo_entry
from runners.train.desc import PretrainedDesc, TrainDesc


def described_data(dataset: DatasetHparams) -> dict[str, Any]:
    """The flags of a data set, without the place where its files are here."""
    return {name: value for name, value in dataset.hashed().items() if name != "data_dir"}


def described_model(
    train: TrainDesc | PretrainedDesc | StoredRun, model: ModelHparams, dataset_name: str, root: Path
) -> dict[str, Any]:
    """Name, flags and kind of a model, the directory of its training, and how to get its weights."""
    told = {"name": train.name, "description": model.hashed(), "kind": "published", "directory": ""}
    if not isinstance(train, PretrainedDesc):
        command = read_json(train.directory(root) / "hparams.json")["command"]
        directory = train.relative if isinstance(train, StoredRun) else str(train.directory(root).relative_to(root))
        obtain = f"ask its author for the weights, which were made by: {command} (a repetition may differ in last bits)"
        return told | {"kind": "trained", "directory": directory, "obtain": obtain}
    if model.path:
        return told | {"kind": "file", "obtain": f"ask its author for the file {Path(model.path).name}"}
    entry = zoo_entry(model, dataset_name)
    return told | {"obtain": "its library fetches it" if entry is None else _of_zoo(entry)}


def _of_zoo(entry: ZooModel) -> str:
    flags = f"--dataset_name={entry.dataset_name} --threat_model={entry.threat_model} --names={entry.name}"
    return f"fetch it by: python nonisotropic.py download_pretrained {flags}"
