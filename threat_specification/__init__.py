"""Threats: sizes of perturbations, sets of bounded threat, projections onto these sets, attacks inside them.

The package works on tensors and callables; it imports neither data sets nor models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foundations.lazy import load_object

if TYPE_CHECKING:
    from threat_specification.base import BoundThreat, Measure, Threat
    from threat_specification.intersection import Intersection
    from threat_specification.norms import L2, Linf
    from threat_specification.projected_displacement.anchors import AnchorSet
    from threat_specification.projected_displacement.threat import ProjectedDisplacement

__all__ = ["L2", "AnchorSet", "BoundThreat", "Intersection", "Linf", "Measure", "ProjectedDisplacement", "Threat"]

# Loaded on first access, so that the registry of this package can be imported without torch.
_MODULES = {
    "AnchorSet": "projected_displacement.anchors",
    "BoundThreat": "base",
    "Intersection": "intersection",
    "L2": "norms",
    "Linf": "norms",
    "Measure": "base",
    "ProjectedDisplacement": "projected_displacement.threat",
    "Threat": "base",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load_object(f"{__name__}.{_MODULES[name]}:{name}")
