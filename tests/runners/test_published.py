"""Published weights and figures: which file is meant, whether it is still the one, and what figures are of."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cli.main import main
from datasets.registry import dataset_info
from foundations.errors import RunError
from foundations.input_hparams import DatasetHparams
from models.robustbench import load_zoo_model
from models.robustbench_registry import namesakes, zoo_model
from runners.test.desc import TestDesc
from runners.test.published import other_preparation


def test_a_bare_name_is_enough_only_where_it_says_which_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Models of one name in two parts of the zoo have one architecture and other weights: nothing would notice."""
    assert namesakes(zoo_model("cifar10", "Linf", "Rice2020Overfitting")) == ["L2"]
    assert namesakes(zoo_model("cifar10", "Linf", "Wong2020Fast")) == []
    for name in ("Rice2020Overfitting", "Wong2020Fast"):
        (tmp_path / f"{name}.pt").write_text("<html>quota exceeded</html>")
    told = {}
    for name in ("Rice2020Overfitting", "Wong2020Fast"):
        words = ["download_pretrained", "--dataset_name=cifar10", f"--names={name}", f"--source_dir={tmp_path}"]
        assert main([*words, f"--root_dir={tmp_path}/root", "--quiet"]) == 1
        told[name] = capsys.readouterr().err
    assert (
        "is not in" in told["Rice2020Overfitting"]
        and "cifar10/Linf/Rice2020Overfitting.pt" in told["Rice2020Overfitting"]
    )
    assert "it is a web page, not weights" in told["Wong2020Fast"]


def test_weights_that_are_not_those_fetched_are_refused(tmp_path: Path) -> None:
    model = zoo_model("cifar10", "Linf", "Wong2020Fast")
    (path,) = model.paths(tmp_path)
    path.parent.mkdir(parents=True)
    torch.save({"weights": torch.zeros(3)}, path)
    (path.parent / "checksums.json").write_text(json.dumps({path.name: "0" * 12}))
    with pytest.raises(RunError, match=r"its checksum is \w{12}, 000000000000 was recorded.*remove the file"):
        load_zoo_model(model, dataset_info(DatasetHparams(dataset_name="cifar10")), tmp_path)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            {"model_name": "torchvision:efficientnet_v2_s"},
            "resized to 384, cropped to 384 (bilinear); here they are res",
        ),
        (
            {"model_name": "torchvision:resnet50"},
            "resized to 232, cropped to 224 (bilinear); here they are resized to 256",
        ),
        ({"model_name": "imagenet_resnet_50"}, "torchvision measured these weights on images resized to 232"),
        ({"model_name": "convnext_tiny"}, "torchvision measured these weights on images resized to 236"),
        ({"model_name": "torchvision:alexnet"}, ""),
        ({"model_name": "Wong2020Fast"}, "prepared by Crop288; here they are resized to 256"),
        ({"model_name": "Debenedetti2022Light_XCiT-S12"}, "prepared by the preparation that timm keeps with the model"),
        ({"model_name": "Salman2020Do_R18"}, ""),
        (
            {"model_name": "Salman2020Do_R18", "image_size": 64},
            "prepared by Res256Crop224; here they are resized to 73",
        ),
        ({"model_name": "Wong2020Fast", "dataset_name": "cifar10"}, ""),
    ],
)
def test_published_figures_say_of_which_images_they_are(flags: dict[str, Any], told: str) -> None:
    values = {"dataset_name": "imagenet", "model_type": "pretrained", "standard_eval": True, **flags}
    desc = TestDesc.from_flags(values)
    inputs: Any = SimpleNamespace(desc=desc, data=SimpleNamespace(info=dataset_info(desc.dataset)))
    assert told in other_preparation(inputs) and bool(told) == bool(other_preparation(inputs))
