"""Threats by name. Does not import torch; a threat is imported when it is used.

To add a threat, write its class in a file of this folder and add an entry here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from foundations.errors import UsageError, check_choice
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


def tangents_named(flag: str, value: str) -> str:
    """The tangents of a flag, comma-separated, each once and in the order of TANGENTS; "all" names all of them.

    Raises UsageError for an unknown one.
    """
    names = [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        check_choice(flag, name, [*TANGENTS, "all"])
    return ",".join(name for name in TANGENTS if name in names or "all" in names)


def check_norm(flag: str, name: str) -> None:
    """Raise UsageError unless a flag names a known threat that needs no anchors."""
    check_choice(flag, name, [known for known in THREATS if known not in NEED_ANCHORS])


def norm(name: str) -> Norm:
    """Make the threat of an entry of THREATS that needs no anchors; UsageError if it is no `Norm`."""
    from threat_specification.norms import Norm

    threat = load_object(THREATS[name])()
    if not isinstance(threat, Norm):
        raise UsageError(
            f"{name}: expected a class derived from threat_specification.norms.Norm, whose sets are balls, got "
            f"{type(threat).__name__}; see docs/extending.md"
        )
    return threat
