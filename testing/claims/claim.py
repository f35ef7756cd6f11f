"""A claim in memory, its one form, and its merging with claims of others.

For every example and claimed set a claim keeps one witness: the image itself if the model misclassifies it as it is,
else the smallest of the points known (least sum of changes, then least bytes). So merging takes minima and unions, and
the result does not depend on the order of the claims, on brackets, or on how often one is named.

Shapes: n examples, c claimed sets, a authors, p points.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from foundations.errors import RunError, UsageError
from testing.claims import archive, schema, tensors
from testing.claims.archive import Refused
from testing.claims.digests import images_digest
from threat_specification.registry import tangents_named

SHOWN = 40  # characters of a name or digest in a message
STANDING, ITSELF = -1, 0  # values of witness; k > 0 is the point k - 1
NAMES = " / "  # between the names that several claims give one model
OWN = ("owner", "delta", "witness", "found_by")  # arrays that merging changes; all others are equal
ALIKE = {  # the others, in words
    "rows": ("index",),
    "labels": ("label",),
    "anchors themselves": ("anchor_index", "anchor_image", "anchor_label"),
    "class weights": ("class_weights",),
}


@dataclass(frozen=True)
class Claim:
    """A claim: `facts` is the content of claim.json, `arrays` are those of `schema.kinds_of`."""

    facts: dict[str, Any]
    arrays: tensors.Arrays

    @property
    def digest(self) -> str:
        """The SHA-256 of claim.json, which has that of the points: the claim's name, however it is compressed."""
        return hashlib.sha256(schema.canonical_json(self.facts)).hexdigest()

    def to_bytes(self) -> bytes:
        """The file; equal claims give equal bytes."""
        return archive.write([schema.canonical_json(self.facts), tensors.to_bytes(self.arrays)])

    @classmethod
    def from_bytes(cls, file: bytes) -> Claim:
        """The claim in a file; raises Refused for a file that is not exactly one that `to_bytes` could have made."""
        told, points = archive.read(file)
        facts = schema.parse(told.content(schema.MOST_JSON))
        kinds = schema.kinds_of(facts)
        if points.size != tensors.size_of(kinds):
            raise Refused("its arrays do not have the length that claim.json describes")
        content = points.content(points.size)
        if hashlib.sha256(content).hexdigest() != facts["points"]["sha256"]:
            raise Refused("its arrays do not have the SHA-256 that claim.json tells")
        claim = cls(facts, tensors.from_bytes(content, kinds))
        _check_arrays(claim)
        _check_sets(claim)
        if merged([claim]).facts != facts:
            raise Refused("it is not in canonical form: order of claims, authors, runs or points, counts or accuracies")
        return claim

    @classmethod
    def read(cls, path: Path | str) -> Claim:
        """The claim in a file; raises RunError, which names the file, if it is refused."""
        path = Path(path).expanduser()
        try:
            if path.stat().st_size > archive.MOST_BYTES:
                raise Refused(f"{path.stat().st_size:,} bytes, expected at most {archive.MOST_BYTES:,}")
            return cls.from_bytes(path.read_bytes())
        except Refused as error:
            raise RunError(f"{path} is refused: {error}") from error
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}; expected the file of a claim") from error

    def broken(self, number: int) -> numpy.ndarray:
        """[n] bool: the examples that a claim says are broken."""
        return self.arrays["witness"][number] != STANDING


def merged(claims: Sequence[Claim]) -> Claim:
    """One claim with the witnesses of all; raises UsageError unless they are about the same model, data and sets."""
    first = claims[0]
    for other in claims[1:]:
        _check_alike(first, other)
    authors = sorted({author for claim in claims for author in claim.facts["authors"]})
    runs = {schema.canonical_json(run): run for claim in claims for run in claim.facts["runs"]}
    found_by = numpy.zeros((*first.arrays["witness"].shape, len(authors)), "uint8")
    for claim in claims:
        for number, author in enumerate(claim.facts["authors"]):
            found_by[..., authors.index(author)] |= claim.arrays["found_by"][..., number]
    arrays = {name: array for name, array in first.arrays.items() if name not in OWN}
    arrays |= smallest([claim.arrays for claim in claims]) | {"found_by": found_by}
    facts = dict(first.facts)
    facts |= {"authors": authors, "runs": [runs[key] for key in sorted(runs)]}
    facts["model"] = _model_of(claims)
    return settled(Claim(facts, arrays))


def _model_of(claims: Sequence[Claim]) -> dict[str, Any]:
    """The names told of the model: every one that a claim gives it, for nobody here knows which is right."""
    told = [claim.facts["model"] for claim in claims]
    name = NAMES.join(sorted({name for model in told for name in model["name"].split(NAMES)}))
    if len(name) > schema.MOST_TEXT:
        raise UsageError(f"merge: expected names of the model of at most {schema.MOST_TEXT:,} characters together")
    return min(({**model, "name": ""} for model in told), key=schema.canonical_json) | {"name": name}


def network_of(facts: dict[str, Any]) -> str:
    """The name of the architecture that a claim tells: equal weights in another one are another model."""
    return str(facts["model"]["description"].get("model_name", ""))


def smallest(sources: Sequence[tensors.Arrays]) -> tensors.Arrays:
    """owner, delta and witness with the smallest witness of all sources for each example and claim.

    Points that are no witness any more are left out; the others are sorted by example, then by size.
    """
    owner = numpy.concatenate([source["owner"] for source in sources])
    delta = numpy.concatenate([source["delta"].astype("int16", copy=False) for source in sources])
    order, rank = _ranks(owner, delta)
    values, before = [], 0
    for source in sources:
        witness = source["witness"].astype("int64")
        point = witness > ITSELF
        ranks = numpy.where(witness == STANDING, len(owner) + 1, 0)
        ranks[point] = rank[witness[point] - 1 + before] + 1
        values.append(ranks)
        before += len(source["owner"])
    least = numpy.minimum.reduce(values)
    kept = numpy.unique(least[(least > 0) & (least <= len(owner))])
    witness = numpy.searchsorted(kept, least) + 1
    witness[least == 0], witness[least == len(owner) + 1] = ITSELF, STANDING
    rows = order[kept - 1]
    few = not len(rows) or int(numpy.abs(delta[rows]).max()) <= 127
    return {
        "owner": owner[rows].astype("int32"),
        "delta": delta[rows].astype("int8" if few else "int16"),
        "witness": witness.astype("int32"),
    }


def _ranks(owner: numpy.ndarray, delta: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Points from small to large, and [p] the place of each point in that order; equal points have the first's."""
    sizes = numpy.abs(delta).reshape(len(owner), -1).sum(1, dtype="int64") if len(owner) else owner
    keys = [(int(o), int(s), d.astype(">i2").tobytes()) for o, s, d in zip(owner, sizes, delta, strict=True)]
    order = numpy.array(sorted(range(len(keys)), key=keys.__getitem__), "int64")
    rank = numpy.zeros(len(keys), "int64")
    place = 0
    for number, row in enumerate(order.tolist()):
        if not number or keys[row] != keys[order[number - 1]]:
            place = number
        rank[row] = place
    return order, rank


def settled(claim: Claim) -> Claim:
    """The same claim with the counts, accuracies and digests that follow from its arrays."""
    arrays, facts = claim.arrays, dict(claim.facts)
    facts["claims"] = [
        {**each, "broken": (count := int(claim.broken(number).sum())), "accuracy": 1 - count / len(arrays["index"])}
        for number, each in enumerate(facts["claims"])
    ]
    sha256 = hashlib.sha256(tensors.to_bytes(arrays)).hexdigest()
    facts["points"] = {"count": len(arrays["owner"]), "dtype": str(arrays["delta"].dtype), "sha256": sha256}
    return dataclasses.replace(claim, facts=facts)


def sets_of(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The claimed sets, without what was found in them."""
    return [{name: each[name] for name in ("threat", "threshold", "radius")} for each in facts["claims"]]


def _check_alike(first: Claim, other: Claim) -> None:
    """Raise UsageError for claims that cannot be merged."""
    pairs = {
        "weights": [claim.facts["model"]["sha256"] for claim in (first, other)],
        "network": [network_of(claim.facts) for claim in (first, other)],
        "images": [claim.facts["data"]["sha256"] for claim in (first, other)],
        "data set": [claim.facts["data"] for claim in (first, other)],
        "anchors": [claim.facts["anchors"] for claim in (first, other)],
        "sets": [sets_of(claim.facts) for claim in (first, other)],
    }
    # Digests alone prove nothing here: `verify` compares them with images, merging has none.
    pairs |= {
        words: [[claim.arrays[name].tobytes() for name in names if name in claim.arrays] for claim in (first, other)]
        for words, names in ALIKE.items()
    }
    for name, (one, two) in pairs.items():
        if one != two:
            shown = f", got {one[:SHOWN]} and {two[:SHOWN]}" if isinstance(one, str) else ""
            raise UsageError(f"merge: expected claims about the same {name}{shown}; their figures do not compare")


def _check_arrays(claim: Claim) -> None:
    """Raise Refused for arrays that contradict one another."""
    facts, arrays = claim.facts, claim.arrays
    index, label, owner, witness = (arrays[name] for name in ("index", "label", "owner", "witness"))
    n, p = len(index), len(owner)
    if not n or not len(witness):
        raise Refused("it claims nothing: expected examples and at least one set")
    names = [schema.canonical_json(each) for each in sets_of(facts)]
    if names != sorted(set(names)):
        raise Refused("its sets are not in order, or one stands there twice")
    if (index < 0).any() or (numpy.diff(index) <= 0).any():
        raise Refused("its indices are not ascending: every example counts once")
    if (label < 0).any() or (label >= facts["data"]["classes"]).any():
        raise Refused(f"its labels are not below {facts['data']['classes']}, the number of classes")
    if (owner < 0).any() or (owner >= n).any() or (witness < STANDING).any() or (witness > p).any():
        raise Refused("its witnesses or their examples do not exist")
    _, rows = numpy.nonzero(witness > ITSELF)
    if (owner[witness[witness > ITSELF] - 1] != rows).any():
        raise Refused("a witness belongs to another example")
    weights = arrays.get("class_weights", numpy.ones((1, 1)))
    others = weights[~numpy.eye(len(weights), dtype=bool)]  # the diagonal has no effect
    if not (numpy.isfinite(others).all() and (others > 0).all()):
        raise Refused("its class weights are not finite numbers above 0")
    found_by = arrays["found_by"]
    if (found_by > 1).any() or ((witness != STANDING) != found_by.any(-1)).any():
        raise Refused("who found what does not fit the witnesses")
    many = {len(run[name]) for run in facts["runs"] for name in ("reported", "lost", "certified")} - {len(witness)}
    if many or {run["author"] for run in facts["runs"]} != set(facts["authors"]):
        raise Refused("its runs do not fit its claims or its authors")


def _check_sets(claim: Claim) -> None:
    """Raise Refused for sets that no machine could measure, and for anchors that contradict what is told of them."""
    told, forms = claim.facts["anchors"], [each["threat"] for each in claim.facts["claims"]]
    for form in (form for form in forms if form["name"] == "PD"):
        if told is None:
            raise Refused("it claims a set of PD without anchors")
        if form["segmented"] != (form["mask_source"] == "center"):
            raise Refused("it claims a set of the segmented form whose masks nobody can make again")
        try:
            tangents_named("tangents", form["tangents"])
        except UsageError as error:
            raise Refused(f"it claims a set of the tangent form of {error}") from error
    if told is None:
        return
    if not told["count"]:
        raise Refused("it has no anchors")
    if told["by"] == "index":
        if (claim.arrays["anchor_index"] < 0).any():
            raise Refused("the rows of its anchors are not rows of a data set")
        return
    images, labels = (torch.from_numpy(claim.arrays[f"anchor_{name}"]) for name in ("image", "label"))
    if (digest := images_digest(images.__getitem__, torch.arange(len(labels)), labels)) != told["sha256"]:
        raise Refused(f"it tells anchors of SHA-256 {told['sha256'][:12]}, and those in it have {digest[:12]}")
    if len(labels.unique()) == 1:
        raise Refused("it has anchors of one class, so that all changes of its images have threat 0")
