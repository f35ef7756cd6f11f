"""Canonical descriptions of models, from their flags: the source of a model and its name. Does not import torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from foundations.errors import UsageError, nearest
from foundations.input_hparams import ModelHparams
from foundations.lazy import load_object
from models.registry import ARCHITECTURES, LIBRARIES, canonical_name, in_library, parse
from models.robustbench_registry import ZooModel, zoo, zoo_model

OURS, ROBUSTBENCH, FILE, HUB = "ours", "robustbench", "file:", "hf:"
SOURCES = (OURS, ROBUSTBENCH, *LIBRARIES)


def resolved(model: ModelHparams, dataset_name: str, dataset_names: Iterable[str] = ()) -> ModelHparams:
    """The same model with a canonical name and source, so that different flags for the same model give the same run.

    `--model_source=timm:NAME` and `--model_source=timm --model_name=NAME` become `--model_name=timm:NAME`. The source
    is kept only if the name does not imply it: "robustbench" and "file:PATH". Raises UsageError for flags that name no
    model, or contradict each other.
    """
    model = _split_source(_fetched(model))
    if not model.model_name:
        raise UsageError("--model_name is required, for example --model_name=lenet")
    source = model.model_source or _implied_source(model, dataset_name, dataset_names)
    if source == ROBUSTBENCH:
        if model.model_type == "scratch":
            raise UsageError(f"--model_name={model.model_name}: the zoo's models are --model_type=pretrained")
        zoo_model(dataset_name, model.threat_model, model.model_name)
        name = model.model_name
    else:
        if source in LIBRARIES and not _fits_registry(model.model_name, dataset_names):
            model = dataclasses.replace(model, model_name=f"{source}:{model.model_name}")
        name = canonical_name(model.model_name, dataset_names)
        _check_weights(model, source, name)
    if (model.pixel_mean or model.pixel_std) and not source.startswith(FILE):
        raise UsageError("--pixel_mean: only a checkpoint of --model_source=file:PATH needs it")
    said = source if source == ROBUSTBENCH or source.startswith(FILE) else ""
    return dataclasses.replace(model, model_name=name, model_source=said)


def written_name(model_name: str, model_source: str) -> str:
    """A model's name, with a library's prefix if only the source gives the library; "" for a model of RobustBench."""
    kind, _, name = model_source.partition(":")
    if kind in LIBRARIES:
        return (name and model_source) or (model_name if _fits_registry(model_name, ()) else f"{kind}:{model_name}")
    return "" if kind == ROBUSTBENCH else model_name


def zoo_entry(model: ModelHparams, dataset_name: str) -> ZooModel | None:
    """The model of RobustBench's zoo that a resolved description names; None for other sources."""
    if model.model_source != ROBUSTBENCH:
        return None
    return zoo_model(dataset_name, model.threat_model, model.model_name)


def weights_version(model: ModelHparams) -> dict[str, str]:
    """For hashes: which weights the name of a library's resolved model stands for; it changes with the library."""
    if model.model_type == "scratch" or model.model_source or not (name := in_library(model.model_name)):
        return {}
    return {"weights": load_object("models.libraries:weights_named")(name)}


def label(model: ModelHparams) -> str:
    """The part of a directory's name that names a resolved model."""
    name = model.model_name.replace(":", "-").replace("/", "-")
    if model.model_source == ROBUSTBENCH:
        return f"{name}_{model.threat_model}"
    return name


def _fetched(model: ModelHparams) -> ModelHparams:
    """The same model with weights of the hub in a file, so that equal weights make the same run."""
    if not model.model_source.startswith(HUB):
        return model
    from models.hub import weights_of

    return dataclasses.replace(model, model_source=f"{FILE}{weights_of(model.model_source.removeprefix(HUB))}")


def _split_source(model: ModelHparams) -> ModelHparams:
    kind, colon, name = model.model_source.partition(":")
    if model.model_source.startswith(FILE):
        if not name:
            raise UsageError("--model_source: expected file:PATH, got file: without a path")
        if model.model_type == "scratch":
            raise UsageError("--model_source=file:PATH: expected --model_type=pretrained with it, got scratch")
        return model
    if kind and kind not in SOURCES:
        raise UsageError(
            f"--model_source: expected one of {', '.join(SOURCES)}, file:PATH or hf:ORG/NAME, "
            f"got '{kind}'{nearest(kind, list(SOURCES))}"
        )
    if not colon:
        return model
    if model.model_name not in ("", name, model.model_source):
        raise UsageError(f"--model_source={model.model_source} and --model_name={model.model_name} name two models")
    return dataclasses.replace(model, model_source=kind, model_name=name)


def _implied_source(model: ModelHparams, dataset_name: str, dataset_names: Iterable[str]) -> str:
    if model.model_type != "scratch" and model.model_name in zoo(dataset_name, model.threat_model):
        return ROBUSTBENCH
    if _fits_registry(model.model_name, dataset_names):
        library = ARCHITECTURES[parse(model.model_name, dataset_names)[0]].library
        return library or OURS
    if model.model_type != "scratch":
        return ROBUSTBENCH  # its error for an unknown name names the models that exist
    return OURS


def _fits_registry(name: str, dataset_names: Iterable[str]) -> bool:
    try:
        parse(name, dataset_names)
    except UsageError:
        return False
    return True


def _check_weights(model: ModelHparams, source: str, name: str) -> None:
    """Raise UsageError for pretrained weights of this project's own networks, since there are none."""
    if model.model_type != "scratch" and source == OURS:
        raise UsageError(
            f"there are no pretrained weights for '{name}'; name a model of RobustBench's zoo, timm:<name> or "
            "torchvision:<name>, or add --model_source=file:PATH"
        )
