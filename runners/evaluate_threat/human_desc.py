"""The flag that names what people saw, and the table of how well each threat agrees with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from datasets.human_sets import HUMAN_SETS, human_digest, path_of_human
from foundations.hparam_fields import Hparams, setting
from foundations.results import between, markdown_table, rounded

OVERALL = "all pairs"
WITHIN = "within groups"  # only pairs of one group are compared with each other
STUDY = "study_pairs.npz"  # pairs of a measurement that report --human_kit shows to people


@dataclass(frozen=True)
class HumanHparams(Hparams):
    """People's answers to compare the threats with."""

    heading: ClassVar[str] = "People as judges"

    human: str = setting(
        "",
        f"What people saw: {', '.join(HUMAN_SETS)} (packaged: MNIST alone), a file .npz of pairs with answers, or the "
        "folder of a study (report --human_kit); the default depends on the data set.",
        path_in=path_of_human,
    )

    def hashed(self) -> dict[str, Any]:
        """The content of the pairs and answers; nothing where no people were asked, as before there was this flag."""
        return {"human": human_digest(self.human)} if self.human else {}


def human_parts(human: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts that are compared, by title: all pairs, and if there are several groups, within them and each one."""
    groups = human["by_group"]
    return {OVERALL: human, **({WITHIN: human["within_groups"], **groups} if len(groups) > 1 else {})}


def human_title(human: dict[str, Any]) -> str:
    """A line on what was compared."""
    counts = f"{human['num_pairs']} pairs of {human['num_images']} images, of which people see another class in"
    return f"AUROC of telling changes in which people see another class ({counts} {human['changed']})"


def human_notes(human: dict[str, Any]) -> list[str]:
    """Notes on what was left out, and why."""
    left = {why: count for why, count in human["left_out"].items() if count}
    notes = [f"{count} pairs left out: {why}" for why, count in left.items()]
    study = human.get("study")
    if study:
        share = "" if study["agreement"] is None else f", agreement {rounded(study['agreement'], 2)}"
        notes.append(f"{study['annotators']} annotators, by majority{share}")
        notes += [f"{name} does not count: {why}" for name, why in study["excluded"].items()]
    return notes + [f"{name} was not measured: {why}" for name, why in human["not_measured"].items()]


def human_summary(result: dict[str, Any]) -> str:
    """The table for the user; "" if no people were asked."""
    human = result.get("human")
    if not human:
        return ""
    parts = human_parts(human)
    header = ["threat", *(f"{title} ({part['changed']} of {part['num_pairs']})" for title, part in parts.items())]
    rows = [[threat, *(_cell(part["auroc"].get(threat)) for part in parts.values())] for threat in human["threats"]]
    lines = [f"{human_title(human)}; 0.5 is chance", markdown_table(header, rows), *human_notes(human)]
    return "\n\n" + "\n".join(lines)


def _cell(found: dict[str, float] | None) -> str:
    if not found:
        return "-"
    return f"{rounded(found['auroc'], 3)} {between(found['low'], found['high'])}"
