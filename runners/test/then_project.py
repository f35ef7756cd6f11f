"""Table 3 of the paper: attack in a ball, project the result once onto the nonisotropic set, and ask the model again.

This is not adaptive: the attack does not know the set, so that the accuracy is an upper bound. `--N_adv_eval` attacks
inside the set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy
from torch import Tensor, nn

from testing.shards import Shard, count_correct
from threat_specification import Measure, ProjectedDisplacement

# --then_project -> form of the threat
FORMS: dict[str, dict[str, bool]] = {
    "pd": {},
    "pd_s": {"segmented": True},
    "pd_w": {"weighted": True},
    "pd_t": {"tangents": True},
}

# Accuracies of the paper at 16/255 (Table 3): l-inf, then projected onto each set.
PUBLISHED: dict[str, dict[str, float]] = {
    "Liu2023Comprehensive_ConvNeXt-L": {"Linf": 0.25, "pd": 0.32, "pd_s": 0.31, "pd_w": 0.31},
    "Liu2023Comprehensive_Swin-B": {"Linf": 0.12, "pd": 0.21, "pd_s": 0.20, "pd_w": 0.21},
    "Liu2023Comprehensive_ConvNeXt-B": {"Linf": 0.10, "pd": 0.19, "pd_s": 0.18, "pd_w": 0.18},
    "Singh2023Revisiting_ConvNeXt-B-ConvStem": {"Linf": 0.09, "pd": 0.19, "pd_s": 0.19, "pd_w": 0.19},
    "Singh2023Revisiting_ViT-S-ConvStem": {"Linf": 0.05, "pd": 0.13, "pd_s": 0.12, "pd_w": 0.12},
    "Debenedetti2022Light_XCiT-L12": {"Linf": 0.04, "pd": 0.17, "pd_s": 0.18, "pd_w": 0.18},
}
PUBLISHED_POWER = 16 / 255

Measures = dict[str, Callable[[Shard, Tensor], Tensor]]


def measures(
    model: nn.Module,
    threats: dict[str, ProjectedDisplacement],
    threshold: float,
    method: str,
    distances: Sequence[Measure],
) -> Measures:
    """Columns of the ball evaluation: threat before and after the projection, and whether the model is right then.

    distances   further measures of the adversarial examples before and after
    """
    made = {f"{other.name}_before": _distance(other) for other in distances}
    for name, threat in threats.items():
        made |= _measures_of(name, model, threat, threshold, method, distances)
    return made


def _distance(measure: Measure) -> Callable[[Shard, Tensor], Tensor]:
    return lambda shard, perturbed: measure.evaluate(shard.images, shard.labels, perturbed)


def _measures_of(
    name: str,
    model: nn.Module,
    threat: ProjectedDisplacement,
    threshold: float,
    method: str,
    distances: Sequence[Measure],
) -> Measures:
    def context(shard: Shard) -> dict[str, Tensor]:
        return {"indices": shard.index} if threat.segmented else {}

    def before(shard: Shard, perturbed: Tensor) -> Tensor:
        return threat.evaluate(shard.images, shard.labels, perturbed, **context(shard))

    last: list[Tensor] = []  # perturbed examples, projected ones and their threats, of the last call

    def projected(shard: Shard, perturbed: Tensor) -> list[Tensor]:
        if not last or last[0] is not perturbed:
            options: dict[str, Any] = {**context(shard), "method": method, "return_threats": True}
            last[:] = [perturbed, *threat.project(shard.images, shard.labels, perturbed, threshold, **options)]
        return last

    def distance_after(other: Measure) -> Callable[[Shard, Tensor], Tensor]:
        return lambda shard, perturbed: _distance(other)(shard, projected(shard, perturbed)[1])

    return {
        f"{name}_before": before,
        f"{name}_after": lambda shard, perturbed: projected(shard, perturbed)[2],
        f"{name}_right": lambda shard, perturbed: count_correct(model, projected(shard, perturbed)[1], shard.labels),
        **{f"{name}_{other.name}_after": distance_after(other) for other in distances},
    }


def metrics(
    arrays: dict[str, numpy.ndarray], names: Sequence[str], threshold: float, distances: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each form: accuracy after the projection, and the mean threats and distances of the adversarial examples."""
    attacked = arrays["adv_broken_by"] > 0

    def mean(values: numpy.ndarray) -> float:
        return float(values[attacked].mean()) if attacked.any() else 0.0

    return {
        name: {
            "threshold": threshold,
            "accuracy": float((arrays[f"adv_{name}_right"] > 0).mean()),
            "threat_before": mean(arrays[f"adv_{name}_before"]),
            "threat_after": mean(arrays[f"adv_{name}_after"]),
            "distances": {
                other: {
                    "before": mean(arrays[f"adv_{other}_before"]),
                    "after": mean(arrays[f"adv_{name}_{other}_after"]),
                }
                for other in distances
            },
        }
        for name in names
    }
