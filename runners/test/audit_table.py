"""The tables of an audit of attacks, as text."""

from __future__ import annotations

from typing import Any

from foundations.results import markdown_table, rounded


def audit_rows(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every attack alone, in the order of the ensemble, then the others."""
    best = "above the exact answer" if found["is_exact"] else "above the best known"
    header = ["attack alone", "member", "accuracy", best, "passes an image", "optimality", "only it breaks"]
    rows = [
        [
            name,
            "yes" if of["member"] else "-",
            rounded(of["accuracy"]),
            f"{of['above_best']:+.4f}",
            f"{of['passes']:.0f}",
            rounded(of["optimality"], 3),
            str(of["only"]),
        ]
        for name, of in found["attacks"].items()
    ]
    return header, rows


def audit_sentence(found: dict[str, Any]) -> str:
    """The ensemble beside the best that is known, and the cheapest order of all attacks in the audit."""
    last = {
        order: (rows or [{"accuracy": found["clean"], "passes": 0.0}])[-1] for order, rows in found["in_turn"].items()
    }
    ours, other = last["ensemble"], last["by_gain"]
    known = "the exact answer" if found["is_exact"] else "the best known"
    names = ", ".join(row["attack"] for row in found["in_turn"]["by_gain"]) or "none"
    return (
        f"the ensemble leaves {rounded(ours['accuracy'])} in {ours['passes']:.0f} passes an image, "
        f"{ours['accuracy'] - found['best']:+.4f} from {known}; by gain a pass ({names}) "
        f"{rounded(other['accuracy'])} are left in {other['passes']:.0f}; optimality is the share of the area under "
        f"clean accuracy that the best attacks reach in {found['budget']} passes"
    )


def audit_table(found: dict[str, Any] | None) -> str:
    """Both; "" without an audit."""
    return "" if found is None else f"{markdown_table(*audit_rows(found))}\n\n{audit_sentence(found)}"
