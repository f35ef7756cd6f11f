"""Models by their names on the command line. Does not import torch.

A name is an architecture, with or without a data set's prefix: lenet, mnist_lenet, cifar10_resnet_20_64.
To add a model, write a function `build(spec, *parts) -> nn.Module` in a file of this folder, and add an entry to
ARCHITECTURES.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foundations.errors import UsageError, nearest
from foundations.images import ImageSpec
from foundations.lazy import load_object

if TYPE_CHECKING:
    from models.normalize import Classifier


def any_parts(*parts: int | str) -> str | None:
    """Accept all parts that match the pattern."""
    return None


def resnet_numbers(depth: int, width: int = 16) -> str | None:
    """Check for a depth of 6n+2 and a positive width; returns None, or a description of the expected numbers."""
    return None if depth >= 8 and depth % 6 == 2 and width else "a depth of 6n+2 (8, 14, 20, ...) and a width >= 1"


IMAGENET_DEPTHS = (18, 34, 50, 101, 152, 200, 269)


def wideresnet_numbers(depth: int, factor: int) -> str | None:
    """Check for a depth of 6n+4 and a positive factor; returns None, or a description of the expected numbers."""
    return None if depth >= 10 and depth % 6 == 4 and factor else "a depth of 6n+4 (10, 16, 28, ...) and a factor >= 1"


def imagenet_resnet_numbers(depth: int, width: int = 64) -> str | None:
    """Accept a published depth and a width of at least 1; otherwise return the expected form."""
    fits = depth in IMAGENET_DEPTHS and width >= 1
    return None if fits else f"a depth of {', '.join(map(str, IMAGENET_DEPTHS))} and a width >= 1"


def positive_sizes(name: str) -> str | None:
    """Accept a name whose layers all have at least one unit; otherwise return the expected form."""
    fits = all(int(part) for part in name.split("_")[1:])
    return None if fits else "layers of at least one unit, such as lenet_300_100"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A family of networks.

    pattern   regular expression that matches the whole name; its groups are the parts, digits as integers
    builder   "module:function", called with the image spec and the parts
    min_side  smallest height and width of images
    check     (parts) -> None, or a description of the expected parts if there is no such network
    library   library that the network is from, which also has pretrained weights; "" for this project's own
    implied   default numbers at the end of a name, which may be left out
    """

    usage: str
    summary: str
    pattern: str
    builder: str
    min_side: int
    check: Any = any_parts
    library: str = ""
    implied: tuple[int, ...] = ()


ARCHITECTURES: dict[str, Architecture] = {
    "lenet": Architecture(
        usage="lenet",
        summary="LeNet-5 with ReLU and max-pooling, from 12x12 up",
        pattern=r"lenet",
        builder="models.lenet:build",
        min_side=12,
    ),
    "conv": Architecture(
        usage="conv",
        summary="four 3x3 convolutions and two linear layers, without batch normalisation, from 8x8 up",
        pattern=r"conv",
        builder="models.conv:build",
        min_side=8,
    ),
    "lenet_by_layers": Architecture(
        usage="lenet_<units>_<units>...",
        summary="perceptron with ReLU and hidden layers of these sizes: lenet_300_100",
        pattern=r"(lenet(?:_\d+)+)",
        builder="models.by_layers:build_perceptron",
        min_side=1,
        check=positive_sizes,
    ),
    "conv_by_layers": Architecture(
        usage="conv_<filters>_<filters>...",
        summary="3x3 convolutions with these numbers of filters, the mean over the image, a linear layer: conv_8_8",
        pattern=r"(conv(?:_\d+)+)",
        builder="models.by_layers:build_convolutions",
        min_side=1,
        check=positive_sizes,
    ),
    "resnet": Architecture(
        usage="resnet_<6n+2>[_<width>]",
        summary="residual network for small images (He et al. 2016), width 16 unless given, from 8x8 up",
        pattern=r"resnet_(\d+)(?:_(\d+))?",
        builder="models.resnet:build",
        min_side=8,
        check=resnet_numbers,
        implied=(16,),
    ),
    "wideresnet": Architecture(
        usage="wideresnet_<6n+4>_<k>",
        summary="wide residual network (Zagoruyko and Komodakis 2016), k times as wide, from 8x8 up",
        pattern=r"(?:wideresnet|wrn)_(\d+)_(\d+)",
        builder="models.preactivation:build_wide",
        min_side=8,
        check=wideresnet_numbers,
    ),
    "preactresnet": Architecture(
        usage="preactresnet_18",
        summary="residual network with normalisation first (He et al. 2016), from 8x8 up",
        pattern=r"preactresnet_(18)",
        builder="models.preactivation:build_preactresnet",
        min_side=8,
    ),
    "vgg": Architecture(
        usage="vgg_<11|13|16|19>",
        summary="VGG with batch normalisation and one linear layer (Simonyan and Zisserman 2015), from 8x8 up",
        pattern=r"vgg_(11|13|16|19)",
        builder="models.vgg:build",
        min_side=8,
    ),
    "imagenet_resnet": Architecture(
        usage="imagenet_resnet_<18|34|50|101|152|200|269>[_<width>]",
        summary="residual network for large images, torchvision's with width 64 (unless given), from 32x32 up",
        pattern=r"imagenet_resnet_(\d+)(?:_(\d+))?",
        builder="models.imagenet_resnet:build",
        min_side=32,
        check=imagenet_resnet_numbers,
        implied=(64,),
        library="torchvision",
    ),
    "vit": Architecture(
        usage="vit_<b|l|h>_<14|16|32>",
        summary="vision transformer (Dosovitskiy et al. 2021), torchvision's",
        pattern=r"(vit_(?:b_16|b_32|l_16|l_32|h_14))",
        builder="models.libraries:build_torchvision",
        min_side=14,
        library="torchvision",
    ),
    "convnext": Architecture(
        usage="convnext_<tiny|small|base|large>",
        summary="ConvNeXt (Liu et al. 2022), torchvision's, from 32x32 up",
        pattern=r"(convnext_(?:tiny|small|base|large))",
        builder="models.libraries:build_torchvision",
        min_side=32,
        library="torchvision",
    ),
    "torchvision": Architecture(
        usage="torchvision:<name>",
        summary="any classification network that torchvision lists",
        pattern=r"torchvision:(\w+)",
        builder="models.libraries:build_torchvision",
        min_side=1,
        library="torchvision",
    ),
    "timm": Architecture(
        usage="timm:<name>",
        summary="any network that timm lists",
        pattern=r"timm:([\w.]+)",
        builder="models.libraries:build_timm",
        min_side=1,
        library="timm",
    ),
}

# Data sets whose names are always accepted as a prefix of a model's name.
FAMILIES = ("mnist", "cifar", "cifar10", "cifar100")
OF_LARGE_IMAGES = ("imagenet_",)  # prefixes that no network for small images may have
LIBRARIES = ("torchvision", "timm")


def canonical_name(model_name: str, dataset_names: Iterable[str] = ()) -> str:
    """The canonical name of a network: mnist_lenet -> lenet, cifar10_resnet_20_16 -> resnet_20."""
    family, parts = parse(model_name, dataset_names)
    implied = ARCHITECTURES[family].implied
    if implied and len(parts) > len(implied) and tuple(parts[-len(implied) :]) == implied:
        parts = parts[: -len(implied)]
    if parts and isinstance(parts[0], str):
        return f"{family}:{parts[0]}" if family in LIBRARIES else parts[0]
    return "_".join([family, *map(str, parts)])


def check_fit(model_name: str, spec: ImageSpec) -> None:
    """Raise UsageError for images that are too small for the model."""
    side = ARCHITECTURES[parse(model_name)[0]].min_side
    if min(spec.shape[1:]) < side:
        raise UsageError(
            f"model '{model_name}' takes images from {side}x{side} up, got {spec.shape[1]}x{spec.shape[2]}; "
            "choose another model"
        )


def build_model(model_name: str, spec: ImageSpec) -> Classifier:
    """A classifier with random weights: [B,C,H,W] pixels in [0, 1] -> [B,K] logits."""
    check_fit(model_name, spec)
    family, parts = parse(model_name)
    network = load_object(ARCHITECTURES[family].builder)(spec, *parts)
    return load_object("models.normalize:with_normalization")(network, spec)


def parse(model_name: str, dataset_names: Iterable[str] = ()) -> tuple[str, list[int | str]]:
    """Family and parts of a name, with or without a prefix; raises UsageError for an unknown name."""
    prefixes = [f"{name}_" for name in (*dataset_names, *FAMILIES)]
    for prefix in ("", *(prefix for prefix in prefixes if model_name.startswith(prefix))):
        bare = model_name.removeprefix(prefix)
        for family, architecture in ARCHITECTURES.items():
            if found := re.fullmatch(architecture.pattern, bare):
                parts = [int(part) if part.isdecimal() else part for part in found.groups() if part is not None]
                if expected := architecture.check(*parts):
                    raise UsageError(f"model '{model_name}': expected {expected}")
                if prefix in OF_LARGE_IMAGES and not architecture.library:
                    raise UsageError(
                        f"model '{model_name}': '{bare}' is a network for small images; name it without {prefix}, or "
                        "one of torchvision's, such as torchvision:vgg16"
                    )
                return family, parts
    if "," in model_name:
        raise UsageError(
            f"--model_name: expected one model, got {model_name}; several are for --model_type=pretrained alone"
        )
    known = [architecture.usage for architecture in ARCHITECTURES.values()]
    raise UsageError(f"unknown model '{model_name}'{nearest(model_name, known)}; known: {', '.join(known)}")


def in_library(model_name: str) -> str:
    """The name of a network in the library that has weights of it, such as torchvision:resnet50; else ""."""
    family, parts = parse(model_name)
    library = ARCHITECTURES[family].library
    if family == "imagenet_resnet":
        return f"{library}:resnet{parts[0]}" if len(parts) == 1 else ""
    return f"{library}:{parts[0]}" if library else ""
