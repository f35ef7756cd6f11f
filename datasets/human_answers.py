"""Answers of the annotators of a study, one .csv file each, and what most of them see.

Columns: study (the digest of the pairs), annotator, seed (of the order in which the pairs were shown), pair (its row),
answer (a class from 0, or -1 for none), and trial, seconds, answer_name, which are not read. One file may be a part of
another, as when answers are saved half-way. A name has one seed: who started twice would count as two people.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from datasets.human_pairs import NOBODY, HumanPairs
from foundations.errors import UsageError
from foundations.text_files import read_text

COLUMNS = ("study", "annotator", "seed", "pair", "answer")
FAILED = 0.2  # share of catch trials above which an annotator is left out

Answers = dict[int, int]  # pair -> answer
Session = tuple[str, str]  # the name of an annotator and the seed of an order


@dataclass(frozen=True)
class Agreement:
    """The answers of most annotators, [n] (-1: no class, a tie, or no answer), and who was asked.

    excluded   annotator -> why his answers do not count
    agreement  mean share of the annotators of a pair who give its most frequent answer, over pairs with two or more
               that are no trial of attention; None without such pairs
    """

    people: numpy.ndarray
    annotators: list[str]
    excluded: dict[str, str]
    agreement: float | None

    def describe(self) -> dict[str, Any]:
        """The field of result.json."""
        share = None if self.agreement is None else round(self.agreement, 6)
        return {"annotators": len(self.annotators), "excluded": self.excluded, "agreement": share}


def agreement_of(pairs: HumanPairs, paths: Sequence[str], num_classes: int) -> Agreement:
    """Combine answers by majority, without annotators who fail too many trials of attention."""
    annotators = _by_annotator(pairs, paths, num_classes)
    excluded = {name: why for name, answers in annotators.items() if (why := _why_excluded(pairs, answers))}
    kept = {name: answers for name, answers in annotators.items() if name not in excluded}
    people, shares = numpy.full(len(pairs), NOBODY), []
    for pair in range(len(pairs)):
        votes = Counter(answers[pair] for answers in kept.values() if pair in answers).most_common(1)
        if not votes:
            continue
        total = sum(pair in answers for answers in kept.values())
        if total > 1 and pairs.catch[pair] == NOBODY:  # one answer agrees with itself; of a catch trial it is known
            shares.append(votes[0][1] / total)
        if 2 * votes[0][1] > total:
            people[pair] = votes[0][0]
    return Agreement(people, list(kept), excluded, float(numpy.mean(shares)) if shares else None)


def _by_annotator(pairs: HumanPairs, paths: Sequence[str], num_classes: int) -> dict[str, Answers]:
    """Name with seed -> pair -> answer, from all files; raises UsageError for answers that do not go together."""
    annotators: dict[str, Answers] = {}
    sessions: dict[str, tuple[str, str]] = {}  # name -> its seed, and the file that had it first
    for path in paths:
        for (person, seed), answers in _read(path, pairs, num_classes).items():
            first, where = sessions.setdefault(person, (seed, path))
            if seed != first:
                raise UsageError(
                    f"--human: {path}: expected one seed of {person}, who has seed {first} in {where}, got seed "
                    f"{seed}; keep one of the two, or give one another name (two people of one name)"
                )
            name = f"{person} (seed {seed})"
            known = annotators.setdefault(name, {})
            if differing := [pair for pair, answer in answers.items() if known.get(pair, answer) != answer]:
                raise UsageError(
                    f"--human: {path}: expected one answer of {name} to pair {differing[0]}, got another in a second "
                    "file; keep one of the two"
                )
            known.update(answers)
    return annotators


def _why_excluded(pairs: HumanPairs, answers: Answers) -> str:
    """The reason for which an annotator does not count; "" if he does."""
    caught = numpy.flatnonzero(pairs.catch != NOBODY)
    if not len(caught):
        return ""
    asked = [pair for pair in caught.tolist() if pair in answers]
    failed = sum(answers[pair] != pairs.catch[pair] for pair in asked)
    if not asked:
        return "answered none of the catch trials"
    return f"failed {failed} of {len(asked)} catch trials" if failed > FAILED * len(asked) else ""


def _read(path: str, pairs: HumanPairs, num_classes: int) -> dict[Session, Answers]:
    """Session -> pair -> answer, from one file."""
    rows = csv.DictReader(io.StringIO(read_text(path)))
    try:
        header = list(rows.fieldnames or ())
        if missing := [name for name in COLUMNS if name not in header]:
            raise UsageError(f"--human: {path}: expected the columns {', '.join(COLUMNS)}, got no {missing[0]}")
        found: dict[Session, Answers] = {}
        for row in rows:
            _take(found, row, f"--human: {path}, line {rows.line_num}", pairs, num_classes)
    except csv.Error as error:
        raise UsageError(f"--human: {path}: expected a .csv file, got: {error}") from error
    if not found:
        raise UsageError(f"--human: {path}: expected answers, got none")
    return found


def _take(found: dict[Session, Answers], row: dict[str, Any], where: str, pairs: HumanPairs, num_classes: int) -> None:
    if row["study"] != pairs.study:
        raise UsageError(
            f"{where}: expected answers to the pairs beside it (study {pairs.study}), got study {row['study']}"
        )
    try:
        pair, answer = int(row["pair"]), int(row["answer"])
    except (TypeError, ValueError):
        raise UsageError(
            f"{where}: expected whole numbers for pair and answer, got {row['pair']} and {row['answer']}"
        ) from None
    if not 0 <= pair < len(pairs):
        raise UsageError(f"{where}: expected a pair from 0 to {len(pairs) - 1}, got {pair}")
    if not NOBODY <= answer < num_classes:
        raise UsageError(f"{where}: expected an answer from {NOBODY} to {num_classes - 1}, got {answer}")
    answers = found.setdefault((row["annotator"], row["seed"]), {})
    if answers.setdefault(pair, answer) != answer:
        raise UsageError(f"{where}: expected one answer to pair {pair}, got a second one that differs")
