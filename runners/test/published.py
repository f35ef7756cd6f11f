"""Published accuracies beside those of a test run: of RobustBench's leaderboard, and of the paper's Table 3."""

from __future__ import annotations

import math
from typing import Any

from models.libraries import preparation
from models.registry import in_library
from models.robustbench_registry import PUBLISHED_POWER
from models.sources import zoo_entry
from runners.test import corruptions, then_project
from runners.test.inputs import Inputs
from runners.train.desc import PretrainedDesc


def same_radius(given: float, published: float) -> bool:
    """True if a radius is the published one, also if people wrote it with a few digits (0.0627 for 16/255)."""
    return math.isclose(given, published, rel_tol=1e-3)


def add_leaderboard(inputs: Inputs, result: dict[str, Any]) -> None:
    """Add the accuracies that RobustBench published to `result`, if it measured this model in the same way."""
    entry = zoo_entry(inputs.desc.model, inputs.desc.dataset_name)
    if entry is None or not isinstance(inputs.desc.train, PretrainedDesc):
        return
    if "standard" in result:
        result["standard"]["published"] = entry.clean
    if "corruption" in result:
        result["corruption"] |= corruptions.published(entry, result["corruption"]["by_corruption"])
    testing = inputs.testing
    power = PUBLISHED_POWER.get((entry.dataset_name, testing.adv_test_attack_norm))
    same = testing.adv_test_attack_norm == entry.threat_model and testing.adv_test_attack_type == "auto"
    if "adv" in result and same and power is not None and same_radius(result["adv"]["threshold"], power):
        result["adv"]["published"] = entry.robust


def other_preparation(inputs: Inputs) -> str:
    """A sentence on the images that published accuracies of these weights are of, if they are other ones; else "".

    Of ImageNet alone: elsewhere images are taken as they are. Without a name of its own RobustBench takes the one that
    timm keeps with the model.
    """
    model, info = inputs.desc.model, inputs.data.info
    if inputs.desc.dataset_name != "imagenet" or not isinstance(inputs.desc.train, PretrainedDesc):
        return ""
    side, shorter = info.shape[-1], round(info.shape[-1] * info.resized)
    here = f"resized to {shorter}, cropped to {side} (bilinear)"
    if (entry := zoo_entry(model, inputs.desc.dataset_name)) is not None:
        if entry.preprocessing == "Res256Crop224" and (shorter, side) == (256, 224):
            return ""
        theirs = entry.preprocessing or "the preparation that timm keeps with the model"
        return f"RobustBench measured {entry.name} on images prepared by {theirs}; here they are {here}"
    name = "" if model.path else in_library(model.model_name)
    if not name:
        return ""
    theirs_resized, theirs_side, interpolation = preparation(name)
    if (theirs_resized, theirs_side, interpolation) == (shorter, side, "bilinear"):
        return ""
    return (
        f"{name.partition(':')[0]} measured these weights on images resized to {theirs_resized}, "
        f"cropped to {theirs_side} ({interpolation}); here they are {here}"
    )


def with_table_3(inputs: Inputs, found: dict[str, Any]) -> dict[str, Any]:
    """The fields of --then_project, with the paper's accuracies of the same model and radius where it has them."""
    if not isinstance(inputs.desc.train, PretrainedDesc):
        return {"then_project": found}
    if not same_radius(inputs.testing.ball_power, then_project.PUBLISHED_POWER):
        return {"then_project": found}
    published = then_project.PUBLISHED.get(inputs.desc.model_name, {})
    found = {name: {**of, "published": published.get(name)} for name, of in found.items()}
    return {"then_project": found, "published_then_project": published.get("Linf")}
