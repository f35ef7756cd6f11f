"""Ranks of claims on a site, by hand: which claim ranks its model, and what equal figures are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy

from runners.report.site_entries import Entry, Group, Record
from runners.report.site_pages import _certified
from testing.claims.claim import ITSELF, STANDING


def entry(
    weights: str, broken: int | tuple[int, ...], verified: bool | None, wrong: int = 0, network: str = "n"
) -> Entry:
    """A claim about 100 images, by those broken in each set; `verified` None: not checked here, False: refuted."""
    sets = [{"broken": each, "accuracy": 1 - each / 100} for each in ([broken] if isinstance(broken, int) else broken)]
    model = {"sha256": weights, "name": weights, "description": {"model_name": network}}
    facts = {"model": model, "claims": sets, "data": {"examples": 100}}
    arrays = {"witness": numpy.tile(numpy.where(numpy.arange(100) < wrong, ITSELF, STANDING), (len(sets), 1))}
    claim: Any = SimpleNamespace(facts=facts, arrays=arrays, digest=f"{weights}{broken}")
    record = None if verified is None else Record("verified/x", (0,), "test", () if verified else ("false",))
    return Entry(Path("claim.zip"), claim, record)


def test_a_weaker_claim_lifts_no_model() -> None:
    """Model a stands at .5, although somebody attacked it less; b at .6, since the lower figure is not verified."""
    claims = [("a", 30, True), ("b", 90, None), ("a", 50, True), ("b", 40, True), ("a", 100, False), ("c", 45, None)]
    group = Group.of([entry(*each) for each in claims])
    assert [one.digest for one in group.entries] == ["b40", "b90", "c45", "a50", "a30", "a100"]
    assert group.ranks == [1, None, 2, 3, None, None]


def test_equal_figures_have_one_rank() -> None:
    group = Group.of([entry("a", 50, None), entry("b", 50, None), entry("c", 60, None)])
    assert group.ranks == [1, 1, 3]


def test_equal_weights_in_another_network_are_another_model() -> None:
    """Of padding or strides no weights tell. Where a claim is verified here, the network is that which was found."""
    group = Group.of([entry("a", 50, None), entry("a", 60, None, network="m"), entry("a", 40, None)])
    assert group.ranks == [1, None, 2] and [one.digest for one in group.entries] == ["a50", "a40", "a60"]
    checked = [entry("a", 50, True), entry("a", 20, True, network="to escape the lower claim")]
    found = [replace(one, record=replace(one.record, name="conv", network="n")) for one in checked]
    assert Group.of(found).ranks == [1, None]


def test_ranks_are_by_whole_numbers() -> None:
    """Nine images of 200 each time; as floating-point numbers their means are 0.955 and two neighbours of it."""
    pairs = {"a": (0, 9), "b": (2, 7), "c": (4, 5)}
    assert len({sum(1 - count / 100 for count in pair) / 2 for pair in pairs.values()}) > 1
    entries = [entry(name, pair, None) for name, pair in pairs.items()]
    assert Group.of(entries).ranks == [1, 1, 1] and Group.of([*entries, entry("d", (4, 4), None, 1)]).ranks[0] == 1
    clean = Group.of([entry("a", (2, 7), None, 1), entry("a", (0, 9), None)])
    assert [one.digest for one in clean.entries] == ["a(2, 7)", "a(0, 9)"]  # as low, and more of its images are wrong


def test_what_is_certified_is_compared_in_whole_numbers() -> None:
    """93 of 100 certified and 7 broken contradict nothing, though 1 - 0.07 is less than 0.93."""
    one = entry("a", 7, None)
    for share, told in ((93 / 100, "0.9300"), (94 / 100, "0.9400, refuted by this file")):
        one.claim.facts["runs"] = [{"certified": [share]}]
        assert _certified(0, one) == told
