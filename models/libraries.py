"""Networks of torchvision and timm, with random or pretrained weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from foundations.errors import RunError, UsageError, nearest
from foundations.images import ImageSpec
from models.normalize import Classifier, Normalize

IMAGENET_CLASSES = 1000
# Networks that answer with several outputs in training, unless they are asked for one.
AUXILIARY: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}
# Mean and deviation that torchvision's weights of these are for; its `transform_input` converts to them inside
# the network, which no file of weights tells.
OF_AUXILIARY = (0.5, 0.5, 0.5)


def build_torchvision(spec: ImageSpec, name: str) -> nn.Module:
    """A classification network of torchvision with random weights."""
    import torchvision

    return torchvision.models.get_model(_known(name, _torchvision_names(), "torchvision"), **_options(spec, name))


def build_timm(spec: ImageSpec, name: str) -> nn.Module:
    """A network of timm with random weights."""
    import timm

    _known(name.split(".")[0], timm.list_models(), "timm")
    options: dict[str, Any] = {"num_classes": spec.num_classes, "in_chans": spec.shape[0]}
    try:
        return timm.create_model(name, img_size=spec.shape[1:], **options)
    except TypeError:  # most networks have no argument `img_size`, since they take images of any size
        return timm.create_model(name, **options)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UsageError(f"model 'timm:{name}' does not take images of {spec.shape}: {error}") from error


def pretrained_torchvision(spec: ImageSpec, name: str) -> Classifier:
    """A network with torchvision's best weights and their normalisation.

    If the data set does not have 1,000 classes, the last layer is replaced by a random one. Raises RunError if the
    weights cannot be fetched.
    """
    import torchvision

    _known(name, _torchvision_names(), "torchvision")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    mean, std, options = tuple(weights.transforms().mean), tuple(weights.transforms().std), {}
    if name in AUXILIARY:
        mean, std, options = OF_AUXILIARY, OF_AUXILIARY, {"transform_input": False}
    try:
        network = torchvision.models.get_model(name, weights=weights, **options)
    except OSError as error:
        raise _offline("torchvision", name, weights.url, error, mean, std) from error
    if name in AUXILIARY:
        _leave_out_auxiliary(network)
    if spec.num_classes != IMAGENET_CLASSES:
        _replace_head(network, spec.num_classes)
    return Classifier(Normalize(mean, std), network)


def pretrained_timm(spec: ImageSpec, name: str) -> Classifier:
    """A network with timm's weights and their normalisation.

    If the number of classes differs from that of the weights, the last layer is a new, random one. Raises RunError if
    the weights cannot be fetched.
    """
    import timm

    timm_classes(name)  # raises UsageError for a name without weights
    try:
        network = timm.create_model(name, pretrained=True, num_classes=spec.num_classes)
    except (OSError, RuntimeError) as error:
        published = timm.get_pretrained_cfg(name)
        raise _offline("timm", name, published.hf_hub_id or "its hub", error, published.mean, published.std) from error
    return Classifier(Normalize(tuple(network.default_cfg["mean"]), tuple(network.default_cfg["std"])), network)


def weights_named(name: str) -> str:
    """The name that a library gives its weights of a model; "" without weights.

    Which weights a model's plain name stands for changes with the library's version.
    name   with the library's prefix, such as timm:resnet50
    """
    library, _, model = name.partition(":")
    if library == "torchvision":
        import torchvision

        if model not in torchvision.models.list_models():
            return ""
        return str(torchvision.models.get_model_weights(model).DEFAULT.name)
    import timm

    try:
        found = timm.get_pretrained_cfg(model)
    except RuntimeError:  # it does not know the tag
        return ""
    return str(found.tag) if found else ""


def preparation(name: str) -> tuple[int, int, str]:
    """The images that a library's weights were measured on: shorter side, side of the centre crop, interpolation.

    name   with the library's prefix, such as timm:resnet50
    """
    library, _, model = name.partition(":")
    if library == "torchvision":
        import torchvision

        made = torchvision.models.get_model_weights(model).DEFAULT.transforms()
        return made.resize_size[0], made.crop_size[0], made.interpolation.value
    import timm

    found = timm.get_pretrained_cfg(model)
    side = found.input_size[-1]
    return int(side / found.crop_pct), side, found.interpolation


def published_pixels(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of the pixels that a library's weights expect; None if it has no weights.

    name   as for `preparation`
    """
    library, _, model = name.partition(":")
    if library == "torchvision":
        import torchvision

        if model in AUXILIARY:
            return OF_AUXILIARY, OF_AUXILIARY
        if model not in torchvision.models.list_models():
            return None
        made = torchvision.models.get_model_weights(model).DEFAULT.transforms()
        return tuple(made.mean), tuple(made.std)
    import timm

    try:
        found = timm.get_pretrained_cfg(model)
    except RuntimeError:  # it does not know the tag
        return None
    return (tuple(found.mean), tuple(found.std)) if found else None


def timm_classes(name: str) -> int:
    """The number of classes of timm's weights of this name; 0 for weights without a last layer."""
    import timm

    _known(name.split(".")[0], timm.list_models(), "timm")
    try:
        return timm.get_pretrained_cfg(name).num_classes
    except RuntimeError as error:  # names the tag that it does not know
        raise UsageError(f"model 'timm:{name}': {error}") from error


def _options(spec: ImageSpec, name: str) -> dict[str, Any]:
    if spec.shape[0] != 3:
        raise UsageError(f"model '{name}' takes colour images, got {spec.shape[0]} channels; choose another model")
    options: dict[str, Any] = {"num_classes": spec.num_classes, **AUXILIARY.get(name, {})}
    if name.startswith("vit_"):
        patch = int(name.rsplit("_", 1)[1])
        if spec.shape[1] != spec.shape[2] or spec.shape[1] % patch:
            raise UsageError(
                f"model '{name}' takes square images whose side is a multiple of {patch}, "
                f"got {spec.shape[1]}x{spec.shape[2]}"
            )
        options["image_size"] = spec.shape[1]
    return options


def _torchvision_names() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def _known(name: str, names: list[str], library: str) -> str:
    if name not in names:
        raise UsageError(f"unknown model '{library}:{name}'{nearest(name, names)}; {library} lists {len(names)} models")
    return name


def _leave_out_auxiliary(network: Any) -> None:
    """Leave out the further outputs, which torchvision's weights always come with."""
    network.aux_logits = False
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(network, name):
            setattr(network, name, None)


def _replace_head(network: nn.Module, num_classes: int) -> None:
    """Replace the layer of the classes, which torchvision registers last, by a random one.

    It is linear, or a convolution (SqueezeNet).
    """
    kinds = (nn.Linear, nn.Conv2d)
    path, head = [(path, module) for path, module in network.named_modules() if isinstance(module, kinds)][-1]
    replacement: nn.Module
    if isinstance(head, nn.Linear):
        replacement = nn.Linear(head.in_features, num_classes, bias=head.bias is not None)
    else:
        replacement = nn.Conv2d(head.in_channels, num_classes, kernel_size=1, bias=head.bias is not None)
    parent, _, attribute = path.rpartition(".")
    owner: Any = network.get_submodule(parent)
    if attribute.isdigit():
        owner[int(attribute)] = replacement
    else:
        setattr(owner, attribute, replacement)


def _offline(
    library: str, name: str, where: str, error: Exception, mean: tuple[float, ...], std: tuple[float, ...]
) -> RunError:
    """An error for weights that cannot be fetched; mean, std: of the pixels that they expect."""
    reason = " ".join(str(error).split())[:200]
    mean_said, std_said = (",".join(f"{value:g}" for value in values) for values in (mean, std))
    return RunError(
        f"the weights of '{library}:{name}' cannot be fetched: {reason}; fetch {where} where there is the internet "
        f"and use them by --model_source=file:PATH --model_name={library}:{name} --pixel_mean={mean_said} "
        f"--pixel_std={std_said}"
    )
