"""Threats: how far a perturbation goes, sets of bounded threat, projections onto them, attacks inside them.

Takes tensors and callables; knows neither data sets nor models.
"""

from threat_specification.base import BoundThreat, Measure, Threat
from threat_specification.intersection import Intersection
from threat_specification.norms import L2, Linf
from threat_specification.projected_displacement.anchors import AnchorSet
from threat_specification.projected_displacement.threat import ProjectedDisplacement

__all__ = ["L2", "AnchorSet", "BoundThreat", "Intersection", "Linf", "Measure", "ProjectedDisplacement", "Threat"]
