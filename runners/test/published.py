"""Published accuracies beside those of a test run: of RobustBench's leaderboard, and of the paper's Table 3."""

from __future__ import annotations

import math
from typing import Any

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
    if entry.preprocessing not in (None, "Res256Crop224"):
        inputs.environment.log(f"note: RobustBench measured {entry.name} on images prepared by {entry.preprocessing}")
    if "standard" in result:
        result["standard"]["published"] = entry.clean
    if "corruption" in result:
        result["corruption"] |= corruptions.published(entry, result["corruption"]["by_corruption"])
    testing = inputs.testing
    power = PUBLISHED_POWER.get((entry.dataset_name, testing.adv_test_attack_norm))
    same = testing.adv_test_attack_norm == entry.threat_model and testing.adv_test_attack_type == "auto"
    if "adv" in result and same and power is not None and same_radius(result["adv"]["threshold"], power):
        result["adv"]["published"] = entry.robust


def with_table_3(inputs: Inputs, found: dict[str, Any]) -> dict[str, Any]:
    """The fields of --then_project, with the paper's accuracies of the same model and radius where it has them."""
    if not isinstance(inputs.desc.train, PretrainedDesc):
        return {"then_project": found}
    if not same_radius(inputs.testing.ball_power, then_project.PUBLISHED_POWER):
        return {"then_project": found}
    published = then_project.PUBLISHED.get(inputs.desc.model_name, {})
    found = {name: {**of, "published": published.get(name)} for name, of in found.items()}
    return {"then_project": found, "published_then_project": published.get("Linf")}
