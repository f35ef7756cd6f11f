"""The judgement of points: does the model misclassify them, and are they in the set? Forward passes and threats only.

A margin is the largest logit of another class minus that of the label. Devices round differently, so that one within
DOUBT of 0, relative to the distance from the larger logit to the median, decides nothing: such points are counted as
doubtful. Of two classes there is no third logit to tell how large logits are, and what both have in common says nothing
of the model: a margin within ROUNDING of 0, relative to the larger of their sizes, decides nothing then, and never one
of more than MOST_ROUNDING, whatever both have in common (0.01 moves a probability of two classes from 0.5 to 0.5025).

Shapes: q points of examples, C, H, W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foundations.pixels import as_floats
from foundations.results import rounded
from testing.claims.claim import ITSELF, Claim
from testing.claims.schema import canonical_json
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.attacks.search import Cell, Pixels
from threat_specification.base import BoundThreat, Threat
from threat_specification.registry import norm

DOUBT = 1e-4
ROUNDING = 64 * torch.finfo(torch.float32).eps
MOST_ROUNDING = 0.01
BATCH = 250
NAMED = 3  # examples named where a claim does not hold


def key(form: dict[str, Any]) -> str:
    """The name under which a form of threat is looked up."""
    return canonical_json(form).decode()


def threat_of(form: dict[str, Any], anchors: AnchorSet | None, class_weights: Tensor | None) -> Threat:
    """The threat that a claim describes."""
    if form["name"] != "PD":
        return norm(form["name"])
    options = {name: form[name] for name in ("weighted", "segmented", "background", "segmented_norm", "tangents")}
    options |= {"tangent_weight": form["tangent_weight"]} if form["tangents"] else {}
    options |= {"mask_source": form["mask_source"]} if form["segmented"] else {}
    options |= {"class_weights": class_weights} if form["weighted"] else {}
    return ProjectedDisplacement(anchors=anchors, **options).prepare()


def batches(chosen: Tensor) -> Iterator[Tensor]:
    """Numbers of the chosen examples, some at a time; of none there is no batch."""
    return (numbers for numbers in chosen.nonzero().flatten().split(BATCH) if len(numbers))


def cell_of(claim: dict[str, Any]) -> Cell:
    return Cell(claim["threshold"], math.inf if claim["radius"] is None else claim["radius"])


@dataclass(frozen=True)
class Margins:
    """[q] margins, and how far from 0 they may be and still decide nothing."""

    value: Tensor
    doubt: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Margins:
        """From logits [q,K]; an answer that is NaN or infinite counts as an error, with certainty."""
        logits = logits.double()
        own = logits.gather(1, labels.view(-1, 1)).squeeze(1)
        others = logits.scatter(1, labels.view(-1, 1), -math.inf).amax(1)
        lost = ~logits.amax(1).isfinite() | logits.isnan().any(1)
        if logits.shape[1] < 3:
            doubt = (ROUNDING * torch.maximum(own.abs(), others.abs())).clamp_max(MOST_ROUNDING)
        else:
            reach = torch.maximum(own, others) - logits.median(1).values.where(~lost, 0.0)
            doubt = DOUBT * reach.where(reach.isfinite(), 0.0)
        return cls((others - own).where(~lost, math.inf), doubt.where(~lost, 0.0))

    @property
    def sure(self) -> Tensor:
        """Misclassified whatever the device."""
        return self.value > self.doubt

    @property
    def possible(self) -> Tensor:
        """Misclassified, or too close to tell."""
        return self.value >= -self.doubt


@dataclass
class Batch:
    """Examples with their threats bound: bytes [q,C,H,W], labels [q], rows [q] in the data set."""

    bytes: Tensor
    labels: Tensor
    rows: Tensor
    model: nn.Module
    threats: Mapping[str, Threat]

    def __post_init__(self) -> None:
        self.images = as_floats(self.bytes)
        self._bounds: dict[str, BoundThreat] = {}

    def bound(self, form: str) -> BoundThreat:
        if form not in self._bounds:
            threat = self.threats[form]
            context = {"indices": self.rows} if threat.segmented else {}
            self._bounds[form] = threat.bind(self.images, self.labels, **context)
        return self._bounds[form]

    def moved(self, delta: Tensor) -> Tensor:
        """The images of points, [q,C,H,W] in [0, 1], from changes in steps of 1/255."""
        return as_floats((self.bytes.short() + delta).clamp(0, 255).byte())

    def in_pixels(self, delta: Tensor) -> Tensor:
        """[q] bool: whether all pixels of the points are bytes."""
        moved = self.bytes.short() + delta
        return ((moved >= 0) & (moved <= 255)).flatten(1).all(1)

    def margins(self, delta: Tensor) -> Margins:
        with torch.no_grad():
            return Margins.of(self.model(self.moved(delta)), self.labels)

    def measure(self, form: str, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The threat, the length that a radius bounds, and whether other bounds hold, [q] each, as attacks do."""
        moved, space = self.moved(delta), Pixels(self.bound(form))
        return space.measure(space.as_seen(moved - self.images, moved), moved)


@dataclass(frozen=True)
class Judge:
    """A model and threats, and the images that a claim is about.

    read     numbers of examples -> their bytes [q,C,H,W]
    labels   [n] of all of them
    rows     [n] in the data set
    threats  `key` of a form -> threat
    """

    model: nn.Module
    read: Callable[[Tensor], Tensor]
    labels: Tensor
    rows: Tensor
    threats: Mapping[str, Threat]

    def batch(self, numbers: Tensor) -> Batch:
        """Examples by their numbers."""
        return Batch(self.read(numbers), self.labels[numbers], self.rows[numbers], self.model, self.threats)

    def verdicts(self, claim: Claim) -> list[Verdict]:
        """The verdict on each claimed set. Every point takes one forward pass, and every image that needs none."""
        sets, witness = claim.facts["claims"], torch.from_numpy(claim.arrays["witness"]).long()
        count = len(self.labels)
        failed = torch.zeros(len(sets), count, dtype=torch.int8)
        doubtful = torch.zeros(len(sets), count, dtype=torch.bool)
        margin = torch.zeros(len(sets), count, dtype=torch.float64)
        for numbers, of_points, delta in self._parts(claim):
            batch = self.batch(numbers)
            margins, whole = batch.margins(delta), batch.in_pixels(delta)
            measured = {form: batch.measure(form, delta) for form in {key(each["threat"]) for each in sets}}
            for place, each in enumerate(sets):
                threat, length, lawful = measured[key(each["threat"])]
                inside = whole & lawful & cell_of(each).holds(threat, length)
                verdict = torch.where(inside, torch.where(margins.possible, HOLDS, RIGHT), OUTSIDE).cpu()
                used = witness[place, numbers.cpu()] == of_points
                where = numbers.cpu()[used]
                failed[place, where] = verdict[used].to(torch.int8)
                doubtful[place, where] = (margins.possible & ~margins.sure).cpu()[used]
                margin[place, where] = margins.value.cpu()[used]
        doubtful &= failed == HOLDS
        return [
            Verdict(each, row, failed[place], doubtful[place], margin[place], self.rows.cpu())
            for place, (each, row) in enumerate(zip(sets, witness, strict=True))
        ]

    def _parts(self, claim: Claim) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Numbers of examples, the value of `witness` that stands for each point, and changes, [q,C,H,W]."""
        arrays, device = claim.arrays, self.labels.device
        themselves = torch.from_numpy((arrays["witness"] == ITSELF).any(0))
        for numbers in batches(themselves):
            delta = torch.zeros((len(numbers), *claim.facts["data"]["shape"]), dtype=torch.int16, device=device)
            yield numbers.to(device), torch.zeros_like(numbers), delta
        for start in range(0, len(arrays["owner"]), BATCH):
            part = slice(start, start + BATCH)
            numbers = torch.from_numpy(arrays["owner"][part].astype("int64"))
            delta = torch.from_numpy(arrays["delta"][part].astype("int16")).to(device)
            yield numbers.to(device), torch.arange(start + 1, start + 1 + len(numbers)), delta


HOLDS, RIGHT, OUTSIDE = 0, 1, 2


@dataclass(frozen=True)
class Verdict:
    """The findings about one claimed set.

    failed [n] HOLDS, RIGHT or OUTSIDE; doubtful [n] bool; margin [n] of the witness; rows [n] in the data set
    """

    claim: dict[str, Any]
    witness: Tensor
    failed: Tensor
    doubtful: Tensor
    margin: Tensor
    rows: Tensor

    @property
    def holds(self) -> bool:
        return not bool(self.failed.any())

    def sentence(self) -> str:
        """The claim in words, and how far it is true."""
        broken, count, told = int((self.witness >= 0).sum()), len(self.witness), self.claim
        start = f"accuracy at most {rounded(told['accuracy'])} in {described(told)}: {broken} of {count} images broken"
        doubts = f"{int(self.doubtful.sum())} doubtful (margins so small that devices may round them either way)"
        if self.holds:
            return f"{start}, all inside the set, {doubts}"
        return f"{start}, but {int(self.failed.count_nonzero())} are not: {'; '.join(self._first())}"

    def _first(self) -> Sequence[str]:
        named = self.failed.nonzero().flatten()[:NAMED].tolist()
        words = {RIGHT: "is classified right, by a margin of {:.3g}", OUTSIDE: "lies outside the set"}
        return [
            f"image {int(self.rows[row])} {words[int(self.failed[row])].format(-float(self.margin[row]))}"
            for row in named
        ]


def described(claim: dict[str, Any]) -> str:
    """A claimed set, such as 'PD <= 0.1, Linf <= 0.3'."""
    form = claim["threat"]
    letters = "".join(
        letter for letter, name in (("W", "weighted"), ("S", "segmented"), ("T", "tangents")) if form.get(name)
    )
    radius = "" if claim["radius"] is None else f", Linf <= {claim['radius']:.4g}"
    return f"{form['name']}{letters and '-' + letters} <= {claim['threshold']:.4g}{radius}{_unusual(form)}"


def _unusual(form: dict[str, Any]) -> str:
    """The further options that make the set larger than its letters tell."""
    found = []
    if form.get("segmented"):
        found += [f"background {form['background']}"] if form["background"] != "frozen" else []
        found += ["masked norms"] if form["segmented_norm"] != "full" else []
    found += [f"tangents {form['tangents']} of weight {form['tangent_weight']:.4g}"] if form.get("tangents") else []
    return f" ({', '.join(found)})" if found else ""
