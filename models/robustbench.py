"""Models of RobustBench's zoo, loaded by the library itself from downloaded files; nothing is downloaded here."""

from __future__ import annotations

import argparse
import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from foundations.errors import RunError
from foundations.images import ImageSpec
from foundations.program import COMMAND
from foundations.third_party import names_for_robustbench
from models.checkpoints import what_is_wrong
from models.downloading import differs
from models.normalize import Classifier, Normalize
from models.robustbench_registry import ZooModel


def import_robustbench() -> Any:
    """The package robustbench, imported; afterwards `import robustbench` works in the whole process.

    By itself it imports `autoattack`, which its requirements install as `pyautoattack`, and `pkg_resources`, which
    setuptools had before version 82: neither is needed here. Raises RunError if it cannot be imported.

    >>> robustbench = nonisotropic.import_robustbench()
    >>> robustbench.load_model.__module__
    'robustbench.utils'
    """
    try:
        with warnings.catch_warnings(), names_for_robustbench():
            warnings.simplefilter("ignore")
            import robustbench.utils
    except ImportError as error:
        cure = "pip install 'robustbench>=1.1.1,<1.2'"
        raise RunError(f"the package robustbench cannot be imported ({error}): {cure}") from error
    return robustbench


def zoo_library() -> Any:
    """The module robustbench.utils; raises RunError if it cannot be imported."""
    return import_robustbench().utils


def harmless_globals() -> list[Any]:
    """The types in the zoo's checkpoints besides tensors; loading them cannot run code."""
    types = [type(numpy.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool")]
    return [argparse.Namespace, numpy.dtype, numpy._core.multiarray.scalar, *types]  # type: ignore[attr-defined]


def missing_files(model: ZooModel, models_dir: Path) -> list[tuple[Path, str]]:
    """The files of a model that are missing or unusable, each with the reason."""
    if not model.files:
        return []
    found = [(path, what_is_wrong(path)) for path in model.paths(models_dir)]
    return [(path, problem) for path, problem in found if problem is not None]


def load_zoo_model(model: ZooModel, spec: ImageSpec, models_dir: Path) -> Classifier:
    """Load a published model, which takes pixels in [0, 1] and contains its own normalisation.

    Raises RunError if a file is missing or unusable.
    """
    for path, problem in missing_files(model, models_dir):
        raise RunError(
            f"RobustBench's {model.name} is not in {path}: {problem}; first run: {COMMAND} "
            f"download_pretrained --dataset_name={model.dataset_name} --threat_model={model.threat_model} "
            f"--names={model.name}"
        )
    for path in model.paths(models_dir) if model.files else ():
        if changed := differs(path):
            raise RunError(f"RobustBench's {model.name}: {path}: {changed}; remove the file and fetch it again")
    library = zoo_library()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(harmless_globals()):
                network = library.load_model(model.name, models_dir, model.dataset_name, model.threat_model)
    except Exception as error:  # models of different authors raise different exceptions
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(f"RobustBench cannot load {model.name}: {reason}") from error
    return _on_pixels(network, spec)


def build_zoo_architecture(model: ZooModel, spec: ImageSpec) -> Classifier:
    """The network of a published model without its weights, which are loaded afterwards."""
    library = zoo_library()
    datasets, threats = library.BenchmarkDataset, library.ThreatModel
    entry = library.all_models[datasets(model.dataset_name)][threats(model.threat_model)][model.name]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return _on_pixels(entry["model"](), spec)


def _on_pixels(network: nn.Module, spec: ImageSpec) -> Classifier:
    channels = spec.shape[0]
    return Classifier(Normalize((0.0,) * channels, (1.0,) * channels), network)
