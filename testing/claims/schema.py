"""The fields of claim.json, and the names, types and shapes of the arrays that go with them. Does not import torch."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from testing.claims.archive import MOST_BYTES, Refused
from testing.claims.tensors import Kinds, size_of

FORMAT, FORMAT_VERSION = "nonisotropic claim", 2
MOST_JSON = 2**24  # bytes
MOST_TEXT = 20_000  # characters of a field
MOST_LISTED = 1000  # authors, sets or runs
MOST_WITNESSES = 2**22  # examples times sets, each of which can have a point: what a file can make a machine work on
TRAINING = re.compile(r"runs/\w+/train/[\w.+-]+/replicate_\d+", re.ASCII)
ANCHORS_BY = ("index", "image")  # how anchors are given: by their rows in the training set, or by themselves


def canonical_json(value: Any) -> bytes:
    """The one way to write a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= MOST_TEXT


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _number(value: Any) -> bool:
    """One way to write each: -0.0 would be another set than 0.0."""
    return isinstance(value, float) and 0 <= value < math.inf and math.copysign(1, value) > 0


def _share(value: Any) -> bool:
    return _number(value) and value <= 1


def _yes_or_no(value: Any) -> bool:
    return isinstance(value, bool)


def _digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _directory(value: Any) -> bool:
    """The place of a train run below a root, and no other."""
    return value == "" or (isinstance(value, str) and ".." not in value and TRAINING.fullmatch(value) is not None)


def _scalar(value: Any) -> bool:
    return _text(value) or value is None or isinstance(value, (bool, int, float))


def _flags(value: Any) -> bool:
    """Names and values of flags, or of packages and versions."""
    return isinstance(value, dict) and all(
        _text(name) and (_scalar(one) or (isinstance(one, list) and all(map(_scalar, one))))
        for name, one in value.items()
    )


def _or_none(rule: Any) -> tuple[Any, ...]:
    return (None, rule)


NORM = {"name": ("Linf", "L2")}
PD = {
    "name": "PD",
    "weighted": _yes_or_no,
    "segmented": _yes_or_no,
    "mask_source": ("", "center"),
    "segmented_norm": ("full", "masked"),
    "background": ("frozen", "radius", "free"),
    "tangents": _text,
    "tangent_weight": _number,
}
# A rule: a function, a constant, a dictionary of fields, a list of one rule for all items, a tuple of alternatives.
SCHEMA: dict[str, Any] = {
    "format": FORMAT,
    "version": FORMAT_VERSION,
    "authors": [_text],
    "model": {
        "name": _text,
        "description": _flags,
        "kind": ("trained", "published", "file"),
        "directory": _directory,
        "obtain": _text,
        "sha256": _digest,
    },
    "data": {
        "description": _flags,
        "split": ("test", "validation"),
        "examples": _count,
        "shape": [_count],
        "classes": _count,
        "sha256": _digest,
    },
    "anchors": _or_none({"count": _count, "by": ANCHORS_BY, "sha256": _digest}),
    "claims": [
        {
            "threat": (NORM, PD),
            "threshold": _number,
            "radius": _or_none(_number),
            "broken": _count,
            "accuracy": _number,
        }
    ],
    "points": {"count": _count, "dtype": ("int8", "int16"), "sha256": _digest},
    "runs": [
        {
            "author": _text,
            "command": _text,
            "software": _flags,
            "reported": [_or_none(_share)],
            "lost": [_count],
            "certified": [_or_none(_share)],
            "corruptions": _or_none({"accuracy": _share, "of": _text}),
            "passes": _or_none(_number),
            "seconds": _number,
        }
    ],
}


def parse(content: bytes) -> dict[str, Any]:
    """claim.json as a dictionary; raises Refused unless it is written in the one way and has the fields of SCHEMA."""
    try:
        facts = json.loads(content)
        fits = canonical_json(facts) == content
    except (ValueError, RecursionError) as error:
        raise Refused(f"claim.json cannot be read: {' '.join(str(error).split())[:100]}") from error
    if not fits:
        raise Refused("claim.json is not written in canonical form (sorted keys, no spaces, each key once)")
    _check(facts, SCHEMA, "claim.json")
    for name in ("authors", "claims", "runs"):
        if len(facts[name]) > MOST_LISTED:
            raise Refused(f"claim.json: {name}: expected at most {MOST_LISTED:,}, got {len(facts[name]):,}")
    if len(shape := facts["data"]["shape"]) != 3:  # before any product of them
        raise Refused(f"claim.json: data: shape: expected [C,H,W], got {len(shape):,} numbers")
    witnesses = facts["data"]["examples"] * len(facts["claims"])
    if witnesses > MOST_WITNESSES or facts["points"]["count"] > witnesses:
        raise Refused(
            f"claim.json: expected at most {MOST_WITNESSES:,} examples times sets, and no more points than that, got "
            f"{witnesses:,} and {facts['points']['count']:,} points"
        )
    kinds = kinds_of(facts)
    if size_of(kinds) > MOST_BYTES:
        raise Refused(f"it would take {size_of(kinds):,} bytes, expected at most {MOST_BYTES:,}")
    return facts


def _check(value: Any, rule: Any, where: str) -> None:
    """Raise Refused, with the place, for a value that does not follow a rule."""
    if isinstance(rule, dict):
        if not isinstance(value, dict) or value.keys() != rule.keys():
            raise Refused(f"{where}: expected the fields {', '.join(rule)} and no others")
        for name, of in rule.items():
            _check(value[name], of, f"{where}: {name}")
    elif isinstance(rule, list):
        if not isinstance(value, list):
            raise Refused(f"{where}: expected a list")
        for item in value:
            _check(item, rule[0], where)
    elif isinstance(rule, tuple):
        if not any(_follows(value, one) for one in rule):
            raise Refused(f"{where}: expected another value, got {ascii(value)[:60]}")
    elif not (rule(value) if callable(rule) else value == rule and type(value) is type(rule)):
        raise Refused(f"{where}: expected another value, got {ascii(value)[:60]}")


def _follows(value: Any, rule: Any) -> bool:
    try:
        _check(value, rule, "")
    except Refused:
        return False
    return True


def kinds_of(facts: dict[str, Any]) -> Kinds:
    """The arrays of a claim: n examples, c claims, a authors, p points.

    index [n], label [n]   rows in the data set, ascending, and labels
    witness [c,n]          what breaks an example in a claim: -1 nothing known, 0 the image itself, k the point k - 1
    found_by [c,n,a]       1 for those who broke it
    owner [p], delta [p,C,H,W]   points: number of the example, and its change in steps of 1/255
    anchor_*, class_weights      as the anchors are given; of the weighted form
    """
    n, c, a, p = facts["data"]["examples"], len(facts["claims"]), len(facts["authors"]), facts["points"]["count"]
    shape, classes = tuple(facts["data"]["shape"]), facts["data"]["classes"]
    kinds: dict[str, tuple[str, tuple[int, ...]]] = {
        "index": ("int64", (n,)),
        "label": ("int64", (n,)),
        "witness": ("int32", (c, n)),
        "found_by": ("uint8", (c, n, a)),
        "owner": ("int32", (p,)),
        "delta": (facts["points"]["dtype"], (p, *shape)),
    }
    anchors = facts["anchors"]
    if anchors is not None and anchors["by"] == "index":
        kinds["anchor_index"] = ("int64", (anchors["count"],))
    elif anchors is not None:
        kinds["anchor_image"] = ("uint8", (anchors["count"], *shape))
        kinds["anchor_label"] = ("int64", (anchors["count"],))
    if any(claim["threat"].get("weighted") for claim in facts["claims"]):
        kinds["class_weights"] = ("float32", (classes, classes))
    return kinds
