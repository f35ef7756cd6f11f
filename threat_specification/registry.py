"""Threats by name. Does not import torch; a threat is imported when it is used.

To add a threat, write its class in a file of this folder and add an entry here.
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

# Tangent of the tangent form of PD -> a function of images [B,C,H,W] that returns [B,n,C,H,W].
TANGENTS: dict[str, str] = {
    "brightness": "threat_specification.projected_displacement.tangents:brightness",
    "contrast": "threat_specification.projected_displacement.tangents:contrast",
    "affine": "threat_specification.projected_displacement.tangents:affine",
    "blur": "threat_specification.projected_displacement.tangents:blur",
}


def check_tangents(flag: str, names: str) -> None:
    """Raise UsageError unless a flag is empty, "all", or names tangents, comma-separated."""
    for name in [] if names in ("", "all") else names.split(","):
        check_choice(flag, name.strip(), TANGENTS)


def check_norm(flag: str, name: str) -> None:
    """Raise UsageError unless a flag names a known threat that needs no anchors."""
    check_choice(flag, name, [known for known in THREATS if known not in NEED_ANCHORS])


def norm(name: str) -> Norm:
    """Make the threat of an entry of THREATS that needs no anchors."""
    return load_object(THREATS[name])()
