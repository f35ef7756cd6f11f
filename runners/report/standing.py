"""The standing of the best model among those that compare, with what puts it in doubt: rivals, images, other ways."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy

from foundations.results import wilson_interval
from runners.paired import Paired, paired
from runners.report.collect import FinishedRun
from runners.report.comparable import comparable, other_ways

SIGNIFICANT = 0.05
NAMED = 3  # perturbations and models named in a sentence
BEHIND, NEAR, AHEAD = "behind", "near", "ahead"


@dataclass(frozen=True)
class OnCommon:
    """Two runs on the images that both have: how many these are, whether they are all of either, the paired test."""

    count: int
    are_all: bool
    test: Paired | None

    @classmethod
    def of(cls, first: FinishedRun, second: FinishedRun, column: str) -> OnCommon | None:
        """By a column of right and wrong in their examples.npz; None where either has none."""
        files = [run.path / "examples.npz" for run in (first, second)]
        if not all(file.is_file() for file in files):
            return None
        with numpy.load(files[0], allow_pickle=False) as mine, numpy.load(files[1], allow_pickle=False) as its:
            if column not in mine or column not in its:
                return None
            count, most = (
                len(numpy.intersect1d(mine["index"], its["index"])),
                max(len(mine["index"]), len(its["index"])),
            )
            return cls(count, count == most, paired(mine, its, column))


@dataclass(frozen=True)
class Rival:
    """Another model beside the one of the highest figure.

    verdict    BEHIND it, NEAR it (nobody can tell), or AHEAD of it on the images that both were measured on
    elsewhere  the images of the two, in words, where they are not the same
    """

    label: str
    verdict: str
    elsewhere: str = ""

    @classmethod
    def of(cls, leader: FinishedRun, run: FinishedRun, name: str) -> Rival:
        """By a paired test on their common images, else by their intervals."""
        common, count = OnCommon.of(leader, run, f"{name}_correct"), run.result[name]["num_examples"]
        elsewhere = ""
        if common is not None and not common.are_all:
            elsewhere = f"{common.count:,} in common"
        elif common is None and count != leader.result[name]["num_examples"]:
            elsewhere = f"{count:,}"
        if common is None or common.test is None:
            is_behind = interval(run, name)[1] < interval(leader, name)[0]
            return cls(run.label, BEHIND if is_behind else NEAR, elsewhere)
        if common.test.p >= SIGNIFICANT:
            return cls(run.label, NEAR, elsewhere)
        return cls(run.label, BEHIND if common.test.only_first > common.test.only_second else AHEAD, elsewhere)


@dataclass(frozen=True)
class Standing:
    """The models that compare in one evaluation: the one of the highest figure, and its rivals."""

    name: str
    tests: list[FinishedRun]

    @cached_property
    def models(self) -> list[FinishedRun]:
        return comparable(self.name, self.tests)

    @property
    def leader(self) -> FinishedRun:
        return self.models[0]

    @cached_property
    def rivals(self) -> list[Rival]:
        return [Rival.of(self.leader, run, self.name) for run in self.models[1:]]

    @property
    def is_best(self) -> bool:
        """False if a rival is right more often than the leader on the images that both were measured on."""
        return not any(rival.verdict == AHEAD for rival in self.rivals)

    def doubts(self) -> str:
        """Remarks on the figure, each after a semicolon; "" if there are none."""
        ways = other_ways(self.name, self.tests)
        ahead, near = ([rival.label for rival in self.rivals if rival.verdict == kind] for kind in (AHEAD, NEAR))
        away = [f"{rival.label} ({rival.elsewhere})" for rival in self.rivals if rival.elsewhere]
        told = []
        if ways:
            told.append(f"{ways} other way{'s' * (ways > 1)} of measuring it stand{'s' * (ways == 1)} in the table")
        if away:
            told.append(f"{listed(away)} {'were' if away[1:] else 'was'} measured on other images")
        if ahead:
            told.append(f"{listed(ahead)} {'are' if ahead[1:] else 'is'} right more often on the images in common")
        if near:
            told.append(f"{listed(near)} cannot be told from it by so few images")
        return "".join(f"; {one}" for one in told)


def interval(run: FinishedRun, name: str) -> tuple[float, float]:
    return wilson_interval(run.result[name]["accuracy"], run.result[name]["num_examples"])


def listed(words: list[str]) -> str:
    """Words in a sentence; of many the first few."""
    shown = words[:NAMED]
    if len(words) > NAMED:
        return f"{', '.join(shown)} and {len(words) - NAMED} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
