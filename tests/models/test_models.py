from __future__ import annotations

import pytest
import torch

from datasets.registry import DATASETS
from foundations.errors import UsageError
from models.normalize import Normalize
from models.registry import build_model, canonical_name


class Spec:
    """Images of a made-up data set."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.shape = (channels, height, width)
        self.num_classes = 7
        self.mean, self.std = (0.4,) * channels, (0.2,) * channels


@pytest.mark.parametrize("name", ["lenet", "conv", "resnet_8", "resnet_14_4"])
@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 32, 32), (1, 28, 28), (2, 17, 13)])
def test_every_model_takes_every_fitting_shape(name: str, shape: tuple[int, int, int]) -> None:
    model = build_model(name, Spec(*shape))
    assert model(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["conv", "resnet_8"])
def test_from_8x8_up(name: str) -> None:
    assert build_model(name, Spec(3, 8, 8))(torch.rand(2, 3, 8, 8)).shape == (2, 7)
    with pytest.raises(UsageError, match="from 8x8 up, got 7x9"):
        build_model(name, Spec(3, 7, 9))


def test_normalisation_is_the_first_layer() -> None:
    model = build_model("conv", Spec(3, 8, 8))
    first = next(iter(model.children()))
    assert isinstance(first, Normalize)
    assert torch.allclose(first(torch.full((1, 3, 8, 8), 0.6)), torch.ones(1, 3, 8, 8))
    assert {"normalize.mean", "normalize.std"} <= set(model.state_dict())


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_resnet_has_as_many_weighted_layers_as_its_name_says(depth: int) -> None:
    model = build_model(f"resnet_{depth}", Spec(3, 32, 32))
    layers = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len([name for name in layers if "shortcut" not in name]) == depth


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("mnist_lenet", "lenet"),
        ("mnist_conv", "conv"),
        ("cifar10_resnet_20", "resnet_20"),
        ("cifar10_resnet_20_16", "resnet_20"),
        ("resnet_020_064", "resnet_20_64"),
        ("digits_resnet_8", "resnet_8"),
    ],
)
def test_names_resolve(alias: str, name: str) -> None:
    assert canonical_name(alias, DATASETS) == name


@pytest.mark.parametrize("name", ["", "resnet", "resnet_7", "resnet_8_0", "lenet_5", "cub_lenet", "mnist_"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"known: lenet, conv, resnet|expected a depth"):
        canonical_name(name, DATASETS)
