"""Certificates of a model as text, and the bracket [certified, attacked] that holds its accuracy. Imports no torch."""

from __future__ import annotations

from typing import Any

from foundations.results import markdown_table, rounded, wilson_text

CERTIFIED = "certified"  # the name of the evaluation in result.json
SAYS_NOTHING = "nothing is certified: the model was not trained for certificates, so that this says nothing about it"
FEW = "the model was not trained for certificates: how few it has says nothing about it"
UNKNOWN = "nothing is certified: if the model was not trained for certificates, this says nothing about it"


def remark(metrics: dict[str, Any]) -> str:
    """A sentence on a model without a bracket; "" for one that has it."""
    if has_bracket(metrics):
        return ""
    if metrics["certified_training"] is None:
        return UNKNOWN
    return FEW if metrics["accuracy"] else SAYS_NOTHING


def has_bracket(metrics: dict[str, Any]) -> bool:
    """True of a model trained for certificates, and of weights of unknown training that have some."""
    trained = metrics["certified_training"]
    return metrics["accuracy"] > 0 if trained is None else trained


def bracket(result: dict[str, Any]) -> str:
    """[certified, attacked], or "-" without a bracket."""
    found = result[CERTIFIED]
    if not has_bracket(found):
        return "-"
    return f"[{rounded(found['accuracy'])}, {rounded(result['N_adv']['accuracy'])}]"


def certified_table(result: dict[str, Any], where: str) -> str:
    """The shares certified over the set `where` and over its box, beside that under attack; "" without certificates."""
    found = result.get(CERTIFIED)
    if found is None:
        return ""
    shares = {
        "certified": found["accuracy"],
        "certified without the threat, by the radius alone": found["box_accuracy"],
        "after all attacks": result["N_adv"]["accuracy"],
    }
    count = found["num_examples"]
    rows = [[name, rounded(share), wilson_text(share, count)] for name, share in shares.items()]
    table = markdown_table([f"certificates, {where}", "share", "95 % interval"], rows)
    told = remark(found) or f"accuracy in this set lies in {bracket(result)}"
    return f"{table}\n\n{told}; {found['seconds_per_example']:.3f} s an image"
