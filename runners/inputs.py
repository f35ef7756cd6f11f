"""Inputs of runners: data sets, anchors and models of earlier runs.

The error for a missing input gives the command that makes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from datasets.registry import load_dataset
from foundations.desc import Desc, StoredRun
from foundations.environment import Environment
from foundations.errors import RunError, UsageError
from foundations.hparams import TrainingHparams
from foundations.plain_networks import harmless
from foundations.run_directory import RunDirectory
from foundations.testing_hparams import TestingHparams
from runners.commands import command
from runners.completion import check_stored
from runners.compute_threat.desc import ThreatDesc
from runners.train.desc import PretrainedDesc, TrainDesc

if TYPE_CHECKING:
    from torch.nn import Module

    from datasets.base import Dataset
    from foundations.images import ImageSpec
    from foundations.input_hparams import DatasetHparams, ModelHparams
    from models.normalize import Classifier
    from threat_specification.base import Measure
    from threat_specification.projected_displacement.anchors import AnchorSet
    from threat_specification.projected_displacement.selection_space import SelectionSpace
    from threat_specification.projected_displacement.threat import ProjectedDisplacement

HARDLY_LESS = 0.005  # of a share of the safe changes, that a radius takes from a set

Network = TypeVar("Network", bound="Module")
Thresholds = TypeVar("Thresholds", TestingHparams, TrainingHparams)


def read_data(desc: Desc, environment: Environment, dataset: DatasetHparams | None = None) -> Dataset:
    """The data set of a run, or the one described. With --download, one process of each machine fetches it first."""
    from datasets.finding import DataMissing

    dataset = dataset or vars(desc)["dataset"]
    assert dataset is not None
    folder = environment.data_dir or environment.root_dir / "data"
    try:
        if environment.local_rank == 0:
            data = load_dataset(dataset, folder)
        environment.barrier()
        data = data if environment.local_rank == 0 else load_dataset(dataset, folder)
    except DataMissing as error:
        fetch = str(error).endswith("or fetch it") and not dataset.download
        raise RunError(f"{error}: {command(desc)} --download" if fetch else str(error)) from error
    for note in data.notes:
        environment.log(f"note: {note}")
    return data


# What lacks where a runner has not made its run.
MISSING = {"compute_threat": "anchors are", "evaluate_threat": "thresholds are", "test": "evaluation is"}


def require_complete(desc: Desc | StoredRun, environment: Environment) -> RunDirectory:
    """The directory of an earlier run; raises RunError, with the command that makes the run, if it is not complete.

    A run whose hparams.json or result.json was edited or damaged also raises an error: its figures would belong to
    something else.
    """
    directory = RunDirectory(desc.directory(environment.root_dir))
    if not directory.is_complete:
        how = f"finish its training in {desc.relative}" if isinstance(desc, StoredRun) else f"run: {command(desc)}"
        kind = MISSING.get("" if isinstance(desc, StoredRun) else desc.runner, "model is")
        earlier = desc.earlier_version(environment.root_dir) if isinstance(desc, ThreatDesc) else ""
        raise RunError(f"the {kind} not there yet; first {how}{earlier or _others(directory.path, desc.name)}")
    directory.result()
    if not isinstance(desc, StoredRun):
        check_stored(desc, directory, environment.root_dir)
    return directory


def _others(path: Path, name: str) -> str:
    """A remark for the user if there are complete runs of the same name: their settings, data or version differ."""
    others = sorted(file.parent for file in path.parents[1].glob(f"{name}_*/replicate_*/result.json"))
    if not others:
        return ""
    return (
        f" ({len(others)} runs of that name have other settings, data or seeds, or are of an earlier version with "
        f"other hashes: {others[0]})"
    )


def read_anchors(desc: ThreatDesc, environment: Environment, part: tuple[int, int] = (0, 1)) -> AnchorSet:
    """The anchors of a compute_threat run, or only one part of them.

    part   (r, n): the r-th of n parts
    """
    from threat_specification.projected_displacement.anchors import AnchorSet

    return AnchorSet.load(require_complete(desc, environment) / "anchors.safetensors", part)


def read_threat(desc: ThreatDesc, environment: Environment, apart: bool = False, **form: Any) -> ProjectedDisplacement:
    """The PD threat over the anchors of a compute_threat run, ready on the device.

    apart  if anchors are divided over processes: these work on different examples
    form   options of `ProjectedDisplacement`: weighted (by the weights stored with the anchors), segmented, ...
    """
    from threat_specification import ProjectedDisplacement
    from threat_specification.projected_displacement.class_weights import load_class_weights

    part = (environment.rank, environment.world_size) if desc.threat.shard_anchors else (0, 1)
    anchors = _on_device(desc, environment, part)
    if form.get("weighted"):
        form["class_weights"] = load_class_weights(require_complete(desc, environment) / "class_weights.safetensors")
    return ProjectedDisplacement(desc.threat, anchors=anchors, **form).prepare(over_ranks=part[1] > 1, apart=apart)


_IN_USE: WeakValueDictionary[tuple[Any, ...], AnchorSet] = WeakValueDictionary()  # anchors on a device


def _on_device(desc: ThreatDesc, environment: Environment, part: tuple[int, int]) -> AnchorSet:
    """The anchors of a run on the device: one copy for all forms of the threat that are used at a time."""
    path = require_complete(desc, environment) / "anchors.safetensors"
    seen = path.stat() if path.is_file() else None
    key = (path, seen and (seen.st_mtime_ns, seen.st_size), part, environment.device)
    if (anchors := _IN_USE.get(key)) is None:
        anchors = _IN_USE[key] = read_anchors(desc, environment, part).to(environment.device)
        anchors.shared = WeakValueDictionary()
    return anchors


def check_masks(threats: Iterable[Measure], images: Sized, which: str) -> None:
    """Raise UsageError for a file of masks with another number of rows than the images that a run takes masks of."""
    from threat_specification.projected_displacement.masks import FileMasks

    for source in (getattr(threat, "mask_source", None) for threat in threats):
        if isinstance(source, FileMasks) and len(source.masks) != len(images):
            raise UsageError(
                f"{source.path}: expected a mask for each of the {len(images):,} {which} images, got "
                f"{len(source.masks):,}; masks go by row, so that training and test images have files of their own"
            )


def with_thresholds(
    hparams: Thresholds,
    desc: Desc | None,
    environment: Environment,
    flag: str,
    names: dict[str, str],
    radii: dict[str, float],
) -> Thresholds:
    """Flags of training or of an evaluation, with the thresholds that a share of safe changes stands for, if it does.

    desc    the evaluate_threat run whose changes count; None if no share was asked for
    flag    that asks for the share
    names   flag of a threshold -> name of its threat
    radii   the same flags -> radius beside that threshold, where there is one
    """
    if desc is None:
        return hparams
    found: dict[str, Any] = read_thresholds(desc, environment, (flag, getattr(hparams, flag)), names, radii)
    return dataclasses.replace(hparams, **found)


def read_thresholds(
    desc: Desc, environment: Environment, asked: tuple[str, float], names: dict[str, str], radii: dict[str, float]
) -> dict[str, float]:
    """By flag, the threshold that holds a share of the safe changes that an evaluate_threat run made.

    asked   flag that asks for the share, and the share
    names   flag -> name of the threat whose threshold it takes
    radii   the same flags -> radius beside the threshold, which cuts its set
    """
    import numpy

    from testing.coverage import share_held, threshold_at

    flag, coverage = asked
    path = require_complete(desc, environment) / "coverage.npz"
    if not path.is_file():
        raise RunError(f"no thresholds in {path.parent}: expected training images that are no anchors, got none")
    with numpy.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    for name in names.values():
        if name not in arrays:
            known = ", ".join(measured for measured in arrays if measured not in ("index", "group"))
            raise RunError(f"no thresholds of {name} in {path.parent}: expected one of {known}")
    safe = {name: values[:, arrays["group"] == "safe"] for name, values in arrays.items() if values.ndim == 2}
    found = {name: threshold_at(safe[name], coverage) for name in names.values()}
    for name, value in found.items():
        if value <= 0:
            raise UsageError(
                f"--{flag}: {name} is 0 for a share of {coverage:g} of the safe changes, so that every set holds "
                "them; ask for a larger share"
            )
    shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    environment.log(f"thresholds that hold {coverage:g} of the safe changes: {shown}")
    for flag_of_threshold, radius in radii.items():
        name = names[flag_of_threshold]
        held = share_held([(safe[name], found[name]), (safe["Linf"], radius)])
        if held < coverage - HARDLY_LESS:
            environment.log(
                f"note: {name} <= {found[name]:.4g} within the radius {radius:.4g} holds {held:.3g} of them"
            )
    return {flag: found[name] for flag, name in names.items()}


def selection_space(desc: ThreatDesc, data: Dataset, environment: Environment) -> SelectionSpace:
    """The space in which a compute_threat run compares images of its data set.

    Every process must ask for it, since they divide what has to be counted.
    """
    from datasets.statistics import channel_statistics
    from threat_specification.projected_displacement.selection_space import RAW, SelectionSpace

    if not desc.threat.is_active("selection_space=normalised"):
        return RAW
    return SelectionSpace(*channel_statistics(data, desc.dataset, environment))


def read_initial_model(desc: TrainDesc | PretrainedDesc, environment: Environment, spec: ImageSpec) -> Classifier:
    """The model that training starts from, or published weights to test unchanged, on the device."""
    from models.building import initial_model

    models_dir, trains = environment.root_dir / "models", isinstance(desc, TrainDesc)
    return initial_model(desc.model, desc.dataset_name, spec, models_dir, new_head=trains).to(environment.device)


def read_model(
    desc: TrainDesc | PretrainedDesc | StoredRun, model: ModelHparams, environment: Environment, spec: ImageSpec
) -> Classifier:
    """The model with the final weights of a train run, or with unchanged pretrained weights, on the device."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from models.building import architecture

    if isinstance(desc, PretrainedDesc):
        return watched(read_initial_model(desc, environment, spec), environment)
    directory = require_complete(desc, environment)
    _check_classes(directory, getattr(spec, "classes", ()))
    path = directory / "model.safetensors"
    classifier = architecture(model, desc.dataset_name, spec)
    try:
        classifier.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"cannot read the weights {path}: {reason}; remove that run's directory and train again"
        ) from error
    return watched(classifier.to(environment.device), environment)


def _check_classes(directory: RunDirectory, ours: Sequence[str]) -> None:
    """Raise UsageError where a model learnt other classes than a folder of images has; its answers are numbers."""
    theirs = directory.result().get("classes")
    if theirs is None or list(theirs) == list(ours):
        return
    if len(theirs) != len(ours):
        differ = f"{len(theirs)} classes, got {len(ours)}"
    else:
        number = next(k for k in range(len(ours)) if theirs[k] != ours[k])
        differ = f"{theirs[number]!r} as class {number}, got {ours[number]!r}"
    raise UsageError(
        f"--data_dir: the model in {directory.path} learnt other classes: expected {differ}; classes are the sorted "
        "names of the folders below train, so give these the names that they had"
    )


def watched(model: Network, environment: Environment) -> Network:
    """The model, with a watchdog beat for every forward pass."""
    if environment.world_size > 1:
        model.register_forward_pre_hook(harmless(lambda *_: environment.watchdog.beat()))
    return model
