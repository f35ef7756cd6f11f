"""Checkpoints as people store them: with what beside the weights, under which names."""

from __future__ import annotations

import argparse
import collections
import pathlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import timm
import torch
import torchvision
from torch import Tensor

from datasets.registry import dataset_info
from foundations.errors import RunError, UsageError
from foundations.input_hparams import DatasetHparams, ModelHparams
from models.building import initial_model
from models.checkpoints import read_state_dict
from models.libraries import _replace_head, pretrained_timm, pretrained_torchvision, published_pixels
from models.normalize import Classifier
from models.registry import build_model, in_library

DIGITS = dataset_info("digits")


@pytest.fixture
def network() -> Classifier:
    torch.manual_seed(1)
    return build_model("conv", DIGITS).eval()


def read(path: Path, **options: Any) -> Classifier:
    model = ModelHparams(model_name="conv", model_type="pretrained", model_source=f"file:{path}", **options)
    return initial_model(model, "digits", DIGITS, Path()).eval()


def weights(network: Classifier, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: value.clone() for name, value in network.network.state_dict().items()}


@pytest.mark.parametrize(
    "beside",
    [
        {"acc": numpy.float64(93.1), "best": numpy.float32(0.5), "epoch": numpy.int64(3)},
        {"args": argparse.Namespace(lr=0.1, out=pathlib.PosixPath("/x"))},
        {"history": collections.defaultdict(list, loss=[1.0]), "order": collections.OrderedDict(a=1)},
    ],
)
@pytest.mark.parametrize("wrapper", ["state_dict", "net", "params", "weights", "state_dict_ema"])
def test_harmless_company(tmp_path: Path, network: Classifier, wrapper: str, beside: dict[str, Any]) -> None:
    torch.save({wrapper: weights(network), **beside}, tmp_path / "x.pt")
    images = torch.rand(3, 1, 8, 8)
    assert read(tmp_path / "x.pt")(images).equal(network(images))


class Stranger:
    """An object that reading would have to build by code of its own."""


def test_what_is_not_allowed_is_named(tmp_path: Path, network: Classifier) -> None:
    torch.save({"state_dict": weights(network), "trainer": Stranger()}, tmp_path / "x.pt")
    with pytest.raises(RunError, match=r"an object of the type \S*Stranger, which is not read .*: torch.save\(model"):
        read(tmp_path / "x.pt")
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "x.pt")
    with pytest.raises(RunError, match="expected a dictionary of tensors, got a dictionary of epoch, optimizer"):
        read(tmp_path / "x.pt")
    with pytest.raises(RunError, match="it is a folder"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.module.", "module.model.", "_orig_mod.module.network.", "net.", "model.net.module.", "1."],
)
def test_prefixes_in_any_combination(tmp_path: Path, network: Classifier, prefix: str) -> None:
    torch.save(weights(network, prefix), tmp_path / "x.pt")
    images = torch.rand(3, 1, 8, 8)
    assert read(tmp_path / "x.pt")(images).equal(network(images))


@pytest.mark.parametrize(
    ("front", "mean", "std"),
    [
        ("module.normalizer.", "new_mean", "new_std"),
        ("0.", "mean", "std"),
        ("", "mu", "sigma"),
    ],
)
def test_a_normaliser_in_front_and_an_attacker_beside(
    tmp_path: Path, network: Classifier, front: str, mean: str, std: str
) -> None:
    beside = {front + mean: torch.full((1, 1, 1), 0.25), front + std: torch.full((1, 1, 1), 0.5)}
    beside |= weights(build_model("conv", DIGITS), "module.attacker.model.")
    torch.save({"model": weights(network, "module.model.") | beside}, tmp_path / "x.pt")
    images = torch.rand(3, 1, 8, 8)
    expected = network.network((images - 0.25) / 0.5)
    assert torch.allclose(read(tmp_path / "x.pt")(images), expected, atol=1e-5)
    told = read(tmp_path / "x.pt", pixel_mean=(0.1,), pixel_std=(0.2,))
    assert torch.allclose(told(images), network.network((images - 0.1) / 0.2), atol=1e-5)


def test_weights_of_a_library_that_take_other_pixels_ask_for_them(tmp_path: Path) -> None:
    """Vision transformers of timm expect pixels from -1 to 1; ImageNet's statistics made accuracy lower, in silence."""
    large = dataset_info(DatasetHparams.of({"dataset_name": "imagenet"}))
    name = "timm:vit_tiny_patch16_224"
    torch.save(build_model(name, large).network.state_dict(), tmp_path / "x.pt")
    model = ModelHparams(model_name=name, model_source=f"file:{tmp_path / 'x.pt'}", model_type="pretrained")
    with pytest.raises(UsageError, match=r"those of timm:vit_tiny_patch16_224 take 0\.5,0\.5,0\.5 and 0\.5,0\.5,0\.5"):
        initial_model(model, "imagenet", large, tmp_path)
    told = replace(model, pixel_mean=(0.5,), pixel_std=(0.5,))
    assert initial_model(told, "imagenet", large, tmp_path).normalize.mean.flatten().tolist() == [0.5] * 3
    initial_model(model, "cifar100", large, tmp_path)  # weights of its own


@pytest.mark.parametrize("name", ["torchvision:resnet200", "timm:resnet18.bogus", "timm:no_such_network"])
def test_a_library_without_weights_asks_for_no_pixels(name: str) -> None:
    """A file of a network with 200 layers, which torchvision has no weights of, ended in an error of torchvision."""
    assert published_pixels(name) is None
    assert published_pixels("torchvision:resnet50") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert in_library("imagenet_resnet_200") == "torchvision:resnet200" and in_library("conv") == ""


def test_a_new_last_layer_has_a_bias_where_the_old_one_has() -> None:
    """maxvit_t has none: its fine-tuned weights could not be read again."""
    for bias in (False, True):
        network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1000, bias=bias))
        _replace_head(network, 7)
        assert network[1].out_features == 7 and (network[1].bias is not None) == bias


def test_a_normaliser_beside_bare_names(tmp_path: Path, network: Classifier) -> None:
    torch.save(weights(network) | {"mu": torch.tensor([0.25]), "sigma": torch.tensor([0.5])}, tmp_path / "x.pt")
    images = torch.rand(3, 1, 8, 8)
    assert torch.allclose(read(tmp_path / "x.pt")(images), network.network((images - 0.25) / 0.5), atol=1e-5)


def test_a_second_head_takes_no_place(tmp_path: Path, network: Classifier) -> None:
    """Its names, without prefix, are those of the network's own last layer."""
    last = list(weights(network))[-1]
    stray = {last: torch.zeros_like(weights(network)[last])}
    torch.save(weights(network, "module.") | stray, tmp_path / "x.pt")
    with pytest.raises(RunError, match=f"not in the network: 1, the first is {last}"):
        read(tmp_path / "x.pt")


@pytest.mark.parametrize("values", [(33.3, 78.9), (0.1, 0.0), (0.1, float("nan")), (-0.1, 0.3)])
def test_a_normaliser_of_other_pixels_is_refused(
    tmp_path: Path, network: Classifier, values: tuple[float, float]
) -> None:
    mean, std = (torch.tensor([value]) for value in values)
    torch.save(weights(network) | {"mean": mean, "std": std}, tmp_path / "x.pt")
    with pytest.raises(RunError, match=r"its normaliser: expected mean and deviation of pixels in \[0, 1\]"):
        read(tmp_path / "x.pt")


def test_two_sets_of_weights(tmp_path: Path, network: Classifier, capsys: pytest.CaptureFixture[str]) -> None:
    other = build_model("conv", DIGITS).eval()
    torch.save({"state_dict_ema": weights(other), "state_dict": weights(network)}, tmp_path / "x.pt")
    images = torch.rand(3, 1, 8, 8)
    assert read(tmp_path / "x.pt")(images).equal(network(images))
    assert "took the weights in 'state_dict'; it has others in state_dict_ema" in capsys.readouterr().err


def test_weights_that_are_no_numbers_of_the_network(tmp_path: Path, network: Classifier) -> None:
    good = weights(network)
    first = next(iter(good))
    for changed, told in (
        (
            {first: torch.full_like(good[first], torch.nan)},
            f"1 of its tensors hold NaN or infinity, the first is {first}",
        ),
        ({first: torch.full_like(good[first], torch.inf)}, "NaN or infinity"),
        ({first: good[first].to(torch.int8)}, rf"whole numbers \(quantised\): 1, the first is {first}"),
        ({"extra.weight": good[first]}, "not in the network: 1, the first is extra.weight"),
    ):
        torch.save({**good, **changed}, tmp_path / "x.pt")
        with pytest.raises(RunError, match=told):
            read(tmp_path / "x.pt")


@pytest.mark.parametrize(("name", "side"), [("googlenet", 64), ("inception_v3", 96)])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_networks_with_auxiliary_outputs_answer_with_one(name: str, side: int) -> None:
    spec = dataset_info("imagenet")
    network = build_model(f"torchvision:{name}", spec)
    for training in (True, False):
        answer = network.train(training)(torch.rand(2, 3, side, side))
        assert isinstance(answer, Tensor) and answer.shape == (2, 1000)


@pytest.mark.parametrize(("name", "side"), [("googlenet", 64), ("inception_v3", 96)])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_pretrained_networks_with_auxiliary_outputs(monkeypatch: pytest.MonkeyPatch, name: str, side: int) -> None:
    """They answer as torchvision's own, and their weights mean the same in a network that was built without any."""
    torch.manual_seed(2)
    published = torchvision.models.get_model(name, init_weights=True, aux_logits=True).state_dict()
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *_, **__: published)
    spec, pixels = dataset_info("imagenet"), torch.rand(2, 3, side, side, dtype=torch.float64)
    pretrained = pretrained_torchvision(spec, name).double()
    assert pretrained.train()(pixels).shape == (2, 1000)

    pretrained = pretrained_torchvision(spec, name).double().eval()
    theirs = torchvision.models.get_model(name, weights="DEFAULT").double().eval()
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (spec.mean, spec.std))
    normalised = (pixels - mean) / std
    torch.testing.assert_close(pretrained(pixels), theirs(normalised))

    again = build_model(f"torchvision:{name}", spec).double().eval()
    again.load_state_dict(pretrained.state_dict())
    assert torch.equal(again(pixels), pretrained(pixels))


def test_offline_says_how_pixels_are_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set's statistics, which a checkpoint has by default, are not those of all networks."""

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", offline)
    with pytest.raises(RunError, match=r"resnet18 --pixel_mean=0\.485,0\.456,0\.406 --pixel_std=0\.229,0\.224,0\.225$"):
        pretrained_torchvision(dataset_info("imagenet"), "resnet18")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RunError, match=r"vit_tiny_patch16_224 --pixel_mean=0\.5,0\.5,0\.5 --pixel_std=0\.5,0\.5,0\.5$"):
        pretrained_timm(dataset_info("imagenet"), "vit_tiny_patch16_224")
