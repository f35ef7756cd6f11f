"""Construction of the model that `ModelHparams` describe (resolved by models/sources.py), random or pretrained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from foundations.errors import RunError, UsageError
from foundations.images import ImageSpec
from foundations.input_hparams import ModelHparams
from models.checkpoints import divide, fit, normaliser, read_state_dict
from models.libraries import (
    IMAGENET_CLASSES,
    pretrained_timm,
    pretrained_torchvision,
    published_pixels,
    timm_classes,
)
from models.normalize import Classifier, Normalize
from models.registry import build_model, check_fit, in_library, parse
from models.robustbench import build_zoo_architecture, load_zoo_model
from models.sources import zoo_entry


def initial_model(
    model: ModelHparams, dataset_name: str, spec: ImageSpec, models_dir: Path, new_head: bool = True
) -> Classifier:
    """The model with its initial weights: random or pretrained.

    new_head   if a library's weights are for another number of classes, True replaces the last layer by a random one,
               and False raises RunError
    """
    if model.model_type == "scratch":
        return build_model(model.model_name, spec)
    entry = zoo_entry(model, dataset_name)
    if entry is not None:
        return load_zoo_model(entry, spec, models_dir)
    check_fit(model.model_name, spec)
    if model.path:
        return _from_file(model, dataset_name, spec)
    family, parts = parse(model.model_name)
    known = timm_classes(str(parts[0])) if family == "timm" else IMAGENET_CLASSES
    if spec.num_classes != known and not new_head:
        raise RunError(
            f"the weights of '{model.model_name}' tell {known} classes apart, {dataset_name} has "
            f"{spec.num_classes}; fine-tune them first: train --model_type=pretrained, then test --model_type=finetuned"
        )
    if family == "timm":
        return pretrained_timm(spec, str(parts[0]))
    if not (name := in_library(model.model_name)):
        raise UsageError(f"there are no pretrained weights for '{model.model_name}': torchvision's have width 64")
    return pretrained_torchvision(spec, name.partition(":")[2])


def architecture(model: ModelHparams, dataset_name: str, spec: ImageSpec) -> Classifier:
    """The same network without pretrained weights, for weights that are loaded afterwards."""
    entry = zoo_entry(model, dataset_name)
    return build_model(model.model_name, spec) if entry is None else build_zoo_architecture(entry, spec)


def _check_pixels(model_name: str, dataset_name: str, mean: Tensor, std: Tensor) -> None:
    """Raise UsageError if a library's weights for ImageNet expect other pixels than the data set's statistics make."""
    name = in_library(model_name) if dataset_name == "imagenet" else ""
    if not name:
        return
    expected = published_pixels(name)
    if expected is None or all(
        (values.flatten() - torch.tensor(wanted)).abs().max() < 1e-3
        for values, wanted in zip((mean, std), expected, strict=True)
    ):
        return
    flags = (",".join(f"{value:g}" for value in values) for values in expected)
    raise UsageError(
        "--pixel_mean, --pixel_std: expected them with these weights, which name none; those of {} take {} and {}; for "
        "ImageNet's, give 0.485,0.456,0.406 and 0.229,0.224,0.225".format(name, *flags)
    )


def _from_file(model: ModelHparams, dataset_name: str, spec: ImageSpec) -> Classifier:
    """Load a checkpoint: the network alone, or with a normalising layer in front, as this project stores it.

    Pixels are normalised by --pixel_mean and --pixel_std, else by that layer, else by the data set's statistics.
    Raises UsageError where a library says that its weights need others.
    """
    path = Path(model.path).expanduser()
    tensors = read_state_dict(path)
    classifier = build_model(model.model_name, spec)
    weights, others = divide(classifier.network.state_dict(), tensors)
    stored = normaliser(others)
    fit(classifier.network, weights, path, model.model_name, beside=others)
    given = (model.pixel_mean, model.pixel_std) if model.pixel_mean else stored
    if given is None:
        _check_pixels(model.model_name, dataset_name, classifier.normalize.mean, classifier.normalize.std)
    else:
        mean, std = (tuple(map(float, values)) for values in given)
        if not (all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std)):
            whose = "--pixel_mean, --pixel_std" if model.pixel_mean else f"{path}, its normaliser"
            raise RunError(
                f"{whose}: expected mean and deviation of pixels in [0, 1], got {mean} and {std}; divide those of "
                "pixels up to 255 by 255"
            )
        channels = spec.shape[0]
        if len(mean) not in (1, channels) or len(std) != len(mean):
            whose = "--pixel_mean" if model.pixel_mean else f"{path}, its normaliser"
            raise RunError(f"{whose}: expected {channels} numbers or one, got {len(mean)}")
        times = channels // len(mean)
        classifier.normalize = Normalize(mean * times, std * times)
    return classifier
