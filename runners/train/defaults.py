"""Default settings of training by model and kind of data set. Does not import torch.

Later sources override earlier ones: the entries of RECIPES in their order, the data set's own defaults
(datasets/registry.py; mostly radii for its images), and FINE_TUNING.
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

from datasets.info import DatasetInfo
from datasets.registry import DATASETS, dataset_info
from foundations.input_hparams import DatasetHparams
from models.registry import canonical_name

RESIDUAL: dict[str, Any] = {"lr": 0.1, "weight_decay": 5e-4, "training_steps": "20ep"}

# (canonical name of the model, kind of images) -> defaults
RECIPES: dict[tuple[str, str], dict[str, Any]] = {
    ("conv", "*"): {"lr": 0.02, "training_steps": "20ep"},
    ("conv_*", "*"): {"lr": 0.02, "training_steps": "20ep"},
    ("lenet_*", "*"): {"lr": 0.1, "momentum": 0.0, "batch_size": 32, "training_steps": "40ep"},
    ("resnet_*", "*"): RESIDUAL,
    ("wideresnet_*", "*"): RESIDUAL,
    ("preactresnet_*", "*"): RESIDUAL,
    ("vgg_*", "*"): {"lr": 0.05, "weight_decay": 5e-4, "training_steps": "20ep"},
    ("imagenet_resnet_*", "*"): {"lr": 0.1, "weight_decay": 1e-4, "training_steps": "90ep"},
    ("vit_*", "*"): {"lr": 0.01, "training_steps": "90ep"},
    ("convnext_*", "*"): {"lr": 0.01, "training_steps": "90ep"},
    ("torchvision:*", "*"): {"lr": 0.01},
    ("timm:*", "*"): {"lr": 0.01},
    # No momentum: it makes the effective learning rate ten times as high, and adversarial training collapses.
    # Small batches: the learning rate can hardly be higher, and with only 31 steps per epoch adversarial training ends
    # before it has converged.
    ("lenet", "*"): {"lr": 0.1, "momentum": 0.0, "batch_size": 32, "training_steps": "40ep"},
    ("*", "small_colour"): {
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "lr_schedule": "milestones",
        "milestone_steps": "80ep,120ep",
        "training_steps": "160ep",
        "random_crop": 4,
        "random_flip": True,
    },
    ("*", "large_colour"): {
        "lr": 0.1,
        "lr_per": 256,
        "batch_size": 256,
        "weight_decay": 1e-4,
        "warmup_steps": "5ep",
        "training_steps": "90ep",
        "random_flip": True,
    },
    ("lenet", "small_colour"): {"momentum": 0.0},
    # With adversaries of full size from the start, its accuracy stays at chance level.
    ("conv", "small_colour"): {"lr": 0.02, "adv_train_growth_epochs": 10},
}

FINE_TUNING: dict[str, Any] = {
    "lr": 0.01,
    "lr_per": 0,
    "lr_schedule": "cosine",
    "milestone_steps": "",
    "warmup_steps": "0it",
    "training_steps": "10ep",
}


def kind_of(info: DatasetInfo) -> str:
    """The kind of images: grey, small_colour (sides up to 64) or large_colour."""
    if info.shape[0] == 1:
        return "grey"
    return "small_colour" if max(info.shape[1:]) <= 64 else "large_colour"


def recipe(model_name: str, info: DatasetInfo | None) -> dict[str, Any]:
    """Default settings for training a model, by its canonical name, on a data set, if one is named."""
    defaults: dict[str, Any] = {}
    kind = kind_of(info) if info else ""
    for (models, kinds), entry in RECIPES.items():
        if fnmatch(model_name, models) and fnmatch(kind, kinds):
            defaults |= entry
    return defaults


def named_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Defaults of flags that depend on the data set, its image size, the model, or the origin of its weights."""
    model_name, model_type = values.get("model_name", ""), values.get("model_type") or "scratch"
    defaults: dict[str, Any] = {}
    info = dataset_info(DatasetHparams.of(values)) if values.get("dataset_name") else None
    if model_type != "scratch":
        # Pretrained models, named or not, use the settings that hold for any model on such images.
        defaults |= recipe(model_type, info)
    elif model_name:
        defaults |= recipe(canonical_name(model_name, DATASETS), info)
    if info:
        defaults |= info.defaults
    return defaults if model_type == "scratch" else defaults | FINE_TUNING
