"""What a model's name on the command line turns into. Torch-free.

A name is an architecture, with or without a data set's prefix: lenet, mnist_lenet, cifar10_resnet_20_64.
To add a model: write a function `build(spec, *numbers) -> nn.Module` in a file of this folder and an entry here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from foundations.errors import UsageError, nearest
from foundations.images import ImageSpec
from foundations.lazy import load_object

if TYPE_CHECKING:
    from torch import nn


def any_numbers(*numbers: int) -> str | None:
    """Accept whatever numbers the pattern let through."""
    return None


def resnet_numbers(depth: int, width: int = 16) -> str | None:
    """A depth of 6n+2 and a positive width; what was expected otherwise."""
    return None if depth >= 8 and depth % 6 == 2 and width else "a depth of 6n+2 (8, 14, 20, ...) and a width >= 1"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One family of networks.

    pattern   full match of its names; groups are the whole numbers handed to the builder
    builder   "module:function", called with the image spec and those numbers
    min_side  smallest height and width it takes
    check     returns what was expected when the numbers make no network
    implied   last numbers that may be left out of a name
    defaults  flags whose default is another for this model
    """

    usage: str
    summary: str
    pattern: str
    builder: str
    min_side: int
    check: Any = any_numbers
    implied: tuple[int, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)


ARCHITECTURES: dict[str, Architecture] = {
    "lenet": Architecture(
        usage="lenet",
        summary="LeNet-5 with ReLU and max-pooling, from 12x12 up",
        pattern=r"lenet",
        builder="models.lenet:build",
        min_side=12,
        defaults={"lr": 0.05, "training_steps": "20ep"},
    ),
    "conv": Architecture(
        usage="conv",
        summary="four 3x3 convolutions and two linear layers, without batch normalisation, from 8x8 up",
        pattern=r"conv",
        builder="models.conv:build",
        min_side=8,
        defaults={"lr": 0.02, "training_steps": "20ep"},
    ),
    "resnet": Architecture(
        usage="resnet_<6n+2>[_<width>]",
        summary="residual network for small images (He et al. 2016), width 16 unless given, from 8x8 up",
        pattern=r"resnet_(\d+)(?:_(\d+))?",
        builder="models.resnet:build",
        min_side=8,
        check=resnet_numbers,
        implied=(16,),
        defaults={"lr": 0.1, "weight_decay": 5e-4, "training_steps": "20ep"},
    ),
}

# Prefixes of published names beside the data sets of this registry.
FAMILIES = ("mnist", "cifar10", "cifar100")


def canonical_name(model_name: str, dataset_names: Iterable[str] = ()) -> str:
    """The one name of a network: mnist_lenet -> lenet, cifar10_resnet_20_16 -> resnet_20."""
    family, numbers = _parse(model_name, dataset_names)
    implied = ARCHITECTURES[family].implied
    if implied and len(numbers) > len(implied) and tuple(numbers[-len(implied) :]) == implied:
        numbers = numbers[: -len(implied)]
    return "_".join([family, *map(str, numbers)])


def model_defaults(model_name: str, dataset_names: Iterable[str] = ()) -> dict[str, Any]:
    """Flags whose default is another for this model."""
    return ARCHITECTURES[_parse(model_name, dataset_names)[0]].defaults


def check_fit(model_name: str, spec: ImageSpec) -> None:
    """Refuse images that are too small for the model."""
    side = ARCHITECTURES[_parse(model_name)[0]].min_side
    if min(spec.shape[1:]) < side:
        raise UsageError(
            f"model '{model_name}' takes images from {side}x{side} up, got {spec.shape[1]}x{spec.shape[2]}; "
            "choose another model"
        )


def build_model(model_name: str, spec: ImageSpec) -> nn.Module:
    """A classifier with random weights: [B,C,H,W] pixels in [0, 1] -> [B,K] logits."""
    check_fit(model_name, spec)
    family, numbers = _parse(model_name)
    network = load_object(ARCHITECTURES[family].builder)(spec, *numbers)
    return load_object("models.normalize:with_normalization")(network, spec)


def _parse(model_name: str, dataset_names: Iterable[str] = ()) -> tuple[str, list[int]]:
    """Family and numbers of a name, with or without a prefix."""
    prefixes = [f"{name}_" for name in (*dataset_names, *FAMILIES)]
    for bare in (model_name, *(model_name.removeprefix(p) for p in prefixes if model_name.startswith(p))):
        for family, architecture in ARCHITECTURES.items():
            if found := re.fullmatch(architecture.pattern, bare):
                numbers = [int(number) for number in found.groups() if number is not None]
                if expected := architecture.check(*numbers):
                    raise UsageError(f"model '{model_name}': expected {expected}")
                return family, numbers
    known = [architecture.usage for architecture in ARCHITECTURES.values()]
    raise UsageError(f"unknown model '{model_name}'{nearest(model_name, known)}; known: {', '.join(known)}")
