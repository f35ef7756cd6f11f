from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torchvision

from datasets.registry import DATASETS
from foundations.errors import UsageError
from models.initialize import keep_interval_widths
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
        ("cifar_resnet_50", "resnet_50"),
        ("mnist_lenet_300_100", "lenet_300_100"),
        ("mnist_conv_8_8", "conv_8_8"),
        ("imagenet_resnet_50", "imagenet_resnet_50"),
        ("imagenet_resnet_50_64", "imagenet_resnet_50"),
        ("imagenet_resnet_200_32", "imagenet_resnet_200_32"),
    ],
)
def test_names_resolve(alias: str, name: str) -> None:
    assert canonical_name(alias, DATASETS) == name


@pytest.mark.parametrize("name", ["", "resnet", "resnet_7", "resnet_8_0", "lenet_5_0", "cub_lenet", "mnist_"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"known: lenet, conv, lenet_|expected a depth|expected layers"):
        canonical_name(name, DATASETS)


@pytest.mark.parametrize("name", ["imagenet_resnet_20", "imagenet_resnet_20_64", "imagenet_vgg_16", "imagenet_lenet"])
def test_a_prefix_of_large_images_never_leads_to_a_network_for_small_ones(name: str) -> None:
    with pytest.raises(UsageError, match=r"expected a depth of 18, 34|is a network for small images"):
        canonical_name(name, DATASETS)


@pytest.mark.parametrize(("depth", "width"), [(18, 64), (18, 16), (50, 16), (200, 8)])
def test_residual_networks_for_large_images(depth: int, width: int) -> None:
    """As many weighted layers as the name says, as many filters in the first; with width 64 torchvision's network."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(f"imagenet_resnet_{depth}_{width}", Spec(3, 32, 32)).eval()
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
        layers = [(name, m) for name, m in model.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        assert len([name for name, _ in layers if "downsample" not in name]) == depth
        assert layers[0][1].weight.shape[0] == width
        if width == 64:
            torch.manual_seed(0)
            theirs = torchvision.models.resnet18(num_classes=7).state_dict()
            torch.manual_seed(0)
            ours = build_model("imagenet_resnet_18", Spec(3, 32, 32)).network.state_dict()
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("name", "sizes"), [("lenet_300_100", [300, 100, 7]), ("conv_8_4", [8, 4, 7])])
def test_networks_named_by_their_layers(name: str, sizes: list[int]) -> None:
    model = build_model(name, Spec(1, 9, 9))
    assert model(torch.rand(2, 1, 9, 9)).shape == (2, 7)
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert [len(layer.weight) for layer in layers] == sizes


def test_scaled_weights_keep_the_width_of_intervals() -> None:
    """Mean widths behind each ReLU, by |W| of each layer; without scaling they grow several times a layer."""
    lenet = build_model("lenet", Spec(1, 28, 28)).network
    assert lenet[0].bias.any()
    keep_interval_widths(lenet)
    assert not any(parameter.any() for name, parameter in lenet.named_parameters() if name.endswith("bias"))
    widths = {}
    for scaled in (False, True):
        torch.manual_seed(0)
        network = build_model("conv", Spec(1, 16, 16)).network.double()
        if scaled:
            keep_interval_widths(network)
        low = torch.rand(4, 1, 16, 16, dtype=torch.float64)
        high, seen = low + 0.2, []
        for layer in network:
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                size = copy.deepcopy(layer)
                size.weight.data.abs_()
                size.bias.data.zero_()
                middle, reach = layer((low + high) / 2), size((high - low) / 2)
                low, high = middle - reach, middle + reach
            else:
                low, high = layer(low), layer(high)
                if isinstance(layer, torch.nn.ReLU):
                    seen.append((high - low).mean().item())
        widths[scaled] = seen
    assert all(0.05 < width < 0.8 for width in widths[True]), widths
    assert all(after > 2 * before for before, after in itertools.pairwise(widths[False])), widths
