"""Threats by name. Torch-free: a name costs no import.

To add a threat: a class in a file of this folder, and an entry here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from foundations.errors import check_choice
from foundations.lazy import load_object

if TYPE_CHECKING:
    from threat_specification.norms import Norm

THREATS: dict[str, str] = {
    "Linf": "threat_specification.norms:Linf",
    "L2": "threat_specification.norms:L2",
    "PD": "threat_specification.projected_displacement.threat:ProjectedDisplacement",
}
NEED_ANCHORS = ("PD",)


def check_norm(flag: str, name: str) -> None:
    """Refuse what a flag cannot name: an unknown threat, or one that needs more than an image."""
    check_choice(flag, name, [known for known in THREATS if known not in NEED_ANCHORS])


def norm(name: str) -> Norm:
    """An entry of THREATS that needs nothing but an image."""
    return load_object(THREATS[name])()
