"""The entries of a leaderboard of claims: what each file says, which record verified it, and which entries compare."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy

from foundations.errors import RunError
from foundations.files import read_json
from foundations.results import is_intact
from runners.claims import REFUTED
from testing.claims.claim import ITSELF, Claim, network_of, sets_of
from testing.claims.judging import described
from testing.claims.schema import canonical_json

FORMAT, FORMAT_VERSION = "nonisotropic leaderboard", 3
LONGEST_NAME = 60  # characters of a file's name that come from a claim
SHORT = 60  # characters of a text of claims in a table


@dataclass(frozen=True)
class Record:
    """A finished `verify` of a claim below the root of this machine.

    refuted   why the claim does not hold, a sentence for each set that fails; () if it holds
    name, network   under which the weights were found on this machine; "" in records of earlier versions
    """

    place: str
    doubtful: tuple[int, ...]
    made_by: str
    refuted: tuple[str, ...] = ()
    name: str = ""
    network: str = ""


@dataclass(frozen=True)
class Entry:
    """A claim with the file that it was read from, and the record that verified it, if there is one."""

    file: Path
    claim: Claim
    record: Record | None

    @property
    def told_name(self) -> str:
        """The name that the file gives its model: nothing ties it to the weights."""
        return self.claim.facts["model"]["name"]

    @property
    def name(self) -> str:
        """The name under which `verify` found the weights here; that which the file tells where it did not."""
        return self.told_name if self.is_name_told else self.record.name  # type: ignore[union-attr]

    @property
    def is_name_told(self) -> bool:
        return not (self.is_verified and self.record and self.record.name)

    @property
    def called(self) -> str:
        """The name of its model in words."""
        return f"{short(self.name)}, told" if self.is_name_told else short(self.name)

    @property
    def model(self) -> tuple[str, str]:
        """Weights and network: as they were found here where the claim is verified, else as the file tells."""
        found = self.record.network if self.record and self.is_verified else ""
        return self.claim.facts["model"]["sha256"], found or network_of(self.claim.facts)

    @cached_property
    def stem(self) -> str:
        """The name of its files: letters, digits, dots and dashes, whatever the claim calls its model."""
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name)[:LONGEST_NAME].strip("-.")
        return f"{words or 'model'}_{self.claim.digest[:12]}"

    @property
    def is_verified(self) -> bool:
        return self.record is not None and not self.record.refuted

    @property
    def is_refuted(self) -> bool:
        return self.record is not None and bool(self.record.refuted)

    @property
    def accuracies(self) -> list[float]:
        return [each["accuracy"] for each in self.claim.facts["claims"]]

    @property
    def broken(self) -> int:
        """Images broken, of all sets together: an exact order of the means of claims about the same images and sets."""
        return sum(each["broken"] for each in self.claim.facts["claims"])

    @cached_property
    def wrong(self) -> int:
        """Images that the claim says are misclassified as they are."""
        return int((self.claim.arrays["witness"] == ITSELF).any(0).sum())

    @property
    def digest(self) -> str:
        return self.claim.digest

    @property
    def clean(self) -> float:
        """The share of images that the claim does not say are misclassified as they are."""
        return 1 - self.wrong / self.claim.arrays["witness"].shape[1]

    @property
    def certified(self) -> list[float | None]:
        """For each set the largest share of images that a run says is certified; None where none does."""
        told = zip(*(run["certified"] for run in self.claim.facts["runs"]), strict=True)
        return [max((share for share in shares if share is not None), default=None) for shares in told]

    @property
    def corruptions(self) -> dict[str, float]:
        """Mean accuracy under corruptions by which they are; the lowest that a run tells."""
        told = [run["corruptions"] for run in self.claim.facts["runs"] if run["corruptions"]]
        return {each["of"]: each["accuracy"] for each in sorted(told, key=lambda each: -each["accuracy"])}

    @property
    def passes(self) -> float | None:
        """Passes for an image in nonisotropic sets, of all runs together; None without such a run."""
        told = [run["passes"] for run in self.claim.facts["runs"] if run["passes"] is not None]
        return sum(told) if told else None

    @property
    def seconds(self) -> float:
        """Of all runs together, on whatever machines they ran."""
        return float(sum(run["seconds"] for run in self.claim.facts["runs"]))

    @property
    def chosen(self) -> list[str]:
        """The file's own choices about its sets, in words: class weights, and anchors that it brings."""
        weights, anchors = self.claim.arrays.get("class_weights"), self.claim.facts["anchors"]
        told = []
        if weights is not None:
            others = weights[~numpy.eye(len(weights), dtype=bool)]
            told.append(f"class weights of the file, {others.min():.3g} to {others.max():.3g}")
        brought = anchors is not None and anchors["by"] != "index"
        return [*told, *(["anchors are images that the file brings, not the data set"] if brought else [])]

    def row(self) -> dict[str, Any]:
        """Everything that the leaderboard tells of it."""
        facts, record = self.claim.facts, self.record
        return {
            "model": self.name,
            "told_model": self.told_name,
            "model_found_here": not self.is_name_told,
            "network": self.model[1],
            "weights_sha256": facts["model"]["sha256"],
            "claim_sha256": self.claim.digest,
            "page": f"{self.stem}.html",
            "card": f"{self.stem}.md",
            "clean_at_most": self.clean,
            "accuracy_at_most": self.accuracies,
            "told_certified": self.certified,
            "told_corruptions": self.corruptions,
            "told_passes": self.passes,
            "told_seconds": self.seconds,
            "broken": [each["broken"] for each in facts["claims"]],
            "images": facts["data"]["examples"],
            "authors": facts["authors"],
            "verified_here": self.is_verified,
            "refuted_here": self.is_refuted,
            "record": record and record.place,
            "record_made_by": record and record.made_by,
            "doubtful": list(record.doubtful) if record and not record.refuted else None,
        }


def entries_of(files: Sequence[Path], root: Path) -> list[Entry]:
    """The claims in these files, each once; raises RunError for a file that is none."""
    records = _records(root)
    found: dict[str, Entry] = {}
    for file in files:
        claim = Claim.read(file)
        found.setdefault(claim.digest, Entry(file, claim, records.get(claim.digest)))
    return [found[digest] for digest in sorted(found)]


def _records(root: Path) -> dict[str, Record]:
    """By digest of the claim, one record of `verify`; one that was edited is none, and one that refutes it wins."""
    found: dict[str, Record] = {}
    for name in (REFUTED, "result.json"):
        for path in sorted((root / "verified").glob(f"*/{name}")):
            if told := _intact(path):
                made = told["environment"]
                by = f"torch {made['packages']['torch']}, {made['gpu'] or made['device']}"
                place, doubtful = f"verified/{path.parent.name}", tuple(told.get("doubtful", ()))
                record = Record(place, doubtful, by, tuple(told.get("refuted", ())), **told.get("found_as", {}))
                found.setdefault(told["claim"], record)
    return found


def _intact(path: Path) -> dict[str, Any] | None:
    """The content of a record as `verify` wrote it; None for any other."""
    try:
        told = read_json(path)
    except RunError:
        return None
    return told if is_intact(told) and (path.name == REFUTED or told.get("runner") == "verify") else None


@dataclass(frozen=True)
class Group:
    """Entries that compare: the same images, anchors and sets, in the order of their models; refuted ones last.

    Models are ranked by the mean over the sets of the lowest claim about them (in whole numbers: by images broken, of
    all sets together), so that a weaker claim beside it lifts
    nobody. Where some are verified here, only those rank the model: others might be false.

    ranks   place of the model for the claim that ranks it, None for all other claims
    """

    entries: list[Entry]
    ranks: list[int | None]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Group:
        """The entries, of which no two have one digest, ranked and in order."""
        models: dict[tuple[str, str], list[Entry]] = {}
        for entry in sorted(entries, key=lambda one: (not one.is_verified, -one.broken, -one.wrong, one.digest)):
            if not entry.is_refuted:
                models.setdefault(entry.model, []).append(entry)
        ranked = sorted(models.values(), key=lambda claims: (claims[0].broken, claims[0].wrong, claims[0].digest))
        order = [entry for claims in ranked for entry in claims]
        figures = [(claims[0].broken, claims[0].wrong) for claims in ranked]
        # Equal figures have one rank: their order, by digest, says nothing.
        places = [
            figures.index(figure) + 1 if entry is claims[0] else None
            for figure, claims in zip(figures, ranked, strict=True)
            for entry in claims
        ]
        refuted = sorted((entry for entry in entries if entry.is_refuted), key=lambda entry: entry.digest)
        return cls([*order, *refuted], [*places, *(None for _ in refuted)])

    @property
    def data(self) -> dict[str, Any]:
        return self.entries[0].claim.facts["data"]

    @property
    def dataset(self) -> str:
        return str(self.data["description"].get("dataset_name", "unnamed"))

    @property
    def title(self) -> str:
        told = [f"{self.data['examples']:,} images", f"{len(self.sets)} set{'s' if self.sets[1:] else ''}"]
        return f"{self.dataset}: {', '.join([*told, *self.entries[0].chosen])}"

    @property
    def sets(self) -> list[str]:
        return [described(each) for each in self.entries[0].claim.facts["claims"]]

    def told(self) -> dict[str, Any]:
        facts = self.entries[0].claim.facts
        return {
            "dataset": self.dataset,
            "split": self.data["split"],
            "images": self.data["examples"],
            "images_sha256": self.data["sha256"],
            "anchors_sha256": facts["anchors"] and facts["anchors"]["sha256"],
            "chosen_by_the_file": self.entries[0].chosen,
            "sets": [{"name": name, **each} for name, each in zip(self.sets, sets_of(facts), strict=True)],
            "rows": [{"rank": rank, **entry.row()} for rank, entry in zip(self.ranks, self.entries, strict=True)],
        }


def groups_of(entries: Sequence[Entry]) -> list[Group]:
    """The entries by what they are about, in one order."""
    found: dict[bytes, list[Entry]] = {}
    for entry in entries:
        facts, weights = entry.claim.facts, entry.claim.arrays.get("class_weights")
        about = [facts["data"], facts["anchors"], sets_of(facts), weights is not None and weights.tobytes().hex()]
        found.setdefault(canonical_json(about), []).append(entry)
    groups = [Group.of(found[about]) for about in sorted(found)]
    return sorted(groups, key=lambda group: (group.dataset, -len(group.entries)))


def leaderboard(groups: Sequence[Group]) -> dict[str, Any]:
    """The content of leaderboard.json; its pages show nothing else."""
    return {"format": FORMAT, "version": FORMAT_VERSION, "tables": [group.told() for group in groups]}


def short(text: str) -> str:
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"
