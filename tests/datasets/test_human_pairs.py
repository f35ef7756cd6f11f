"""Answers of people: the packaged pairs, the file format, and answers of several annotators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

from datasets.human_answers import agreement_of
from datasets.human_pairs import HumanPairs, read_pairs, write_pairs
from datasets.human_sets import HUMAN_SETS, human_digest, human_files
from foundations.errors import UsageError


def arrays(count: int = 6, **other: Any) -> dict[str, numpy.ndarray]:
    """A file that fits images 1x4x4 of three classes; None takes an array away."""
    images = numpy.random.default_rng(0).integers(0, 256, (2, count, 1, 4, 4), numpy.uint8)
    made = {
        "clean": images[0],
        "changed": images[1],
        "label": numpy.arange(count) % 3,
        "people": numpy.ones(count, int),
    }
    return {name: value for name, value in (made | other).items() if value is not None}


def read(tmp_path: Path, **other: Any) -> HumanPairs:
    numpy.savez(tmp_path / "pairs.npz", **arrays(**other))
    return read_pairs(tmp_path / "pairs.npz", (1, 4, 4), 3)


def test_the_packaged_pairs_are_what_their_source_says() -> None:
    packaged = HUMAN_SETS["mnist_invariance"]
    pairs = read_pairs(packaged.path, (1, 28, 28), 10)
    assert len(pairs) == 279 and len(numpy.unique(pairs.images())) == 93 and pairs.certain.all()
    assert pairs.people is not None
    largest = numpy.abs(pairs.changed.astype(int) - pairs.clean).max((1, 2, 3))
    for group, changed, size in (("l-inf 0.3", 18, 77), ("l-inf 0.4", 34, 103), ("l0", 51, None)):
        rows = pairs.group == group
        assert rows.sum() == 93 and (pairs.people != pairs.label)[rows].sum() == changed
        assert size is None or set(largest[rows]) == {size}
    notice = (Path(packaged.path).parent / "LICENSE.mnist_invariance.txt").read_text()
    assert "Copyright (c) 2019 ftramer" in notice and "The above copyright notice" in notice


def test_a_file_read_and_written_again_says_the_same(tmp_path: Path) -> None:
    group, change = numpy.array(["a", "b"] * 3), numpy.array(["fog 3"] * 6)
    first = read(tmp_path, group=group, change=change, certain=numpy.arange(6) > 2, people=numpy.array([-1, 0, 1] * 2))
    write_pairs(tmp_path / "again.npz", first)
    again = read_pairs(tmp_path / "again.npz", (1, 4, 4), 3)
    for name, value in vars(first).items():
        assert (value is None and getattr(again, name) is None) or numpy.array_equal(value, getattr(again, name)), name
    assert first.study == again.study != read(tmp_path, label=numpy.array([1, 1, 2, 0, 1, 2])).study
    assert first.study == read(tmp_path, people=numpy.zeros(6, int)).study  # of what is asked, not of the answers


MISTAKES = {
    "clean": (numpy.zeros((6, 4, 4), numpy.uint8), "expected clean: uint8 [6, 1, 4, 4], got uint8 [6, 4, 4]"),
    "changed": (numpy.zeros((6, 1, 4, 4)), "expected changed: uint8 [6, 1, 4, 4], got float64 [6, 1, 4, 4]"),
    "label": (numpy.array([0, 1, 2, 3, 0, 1]), "expected label: classes from 0 to 2, got 3"),
    "people": (numpy.array([0.0] * 6), "expected people: 6 whole numbers, got float64 [6]"),
    "certain": (numpy.ones(6, int), "expected certain: true or false for each pair (bool), got int64 [6]"),
    "group": (numpy.arange(6), "expected group: texts, got int64 [6]"),
    "change": (numpy.array(["fog"]), "expected change: one entry for each of 6 pairs, got shape [1]"),
    "catch": (numpy.array([-2] * 6), "expected catch: classes from -1 to 2, got -2"),
    "classes": (numpy.array(["a", "b"]), "expected classes: 3 names, as the data set has, got 2"),
    "groups": (numpy.arange(6), "got groups (did you mean 'group'?)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_told_in_a_line(name: str, tmp_path: Path) -> None:
    value, message = MISTAKES[name]
    with pytest.raises(UsageError) as told:
        read(tmp_path, **{name: value})
    assert message in str(told.value) and "pairs.npz" in str(told.value) and "\n" not in str(told.value)


def test_a_study_of_other_classes_is_refused(tmp_path: Path) -> None:
    """As many of them: people answered with the numbers of names that they were shown."""
    forms = (["tench", "crane", "crane"], ["n01", "n02", "n03"])
    for own in forms:
        study = read(tmp_path, classes=numpy.array(own)).study
        found = read_pairs(tmp_path / "pairs.npz", (1, 4, 4), 3, names=forms)
        assert found.classes is not None and found.classes.tolist() == own and found.study == study
    assert study == read(tmp_path).study  # answers on disk name it
    assert read_pairs(tmp_path / "pairs.npz", (1, 4, 4), 3, names=forms).classes is None
    for other, told in ((["n01", "n04", "n03"], "1 is n02, got one where it is n04"), (["a", "b", "c"], "0 is tench")):
        read(tmp_path, classes=numpy.array(other))
        with pytest.raises(UsageError, match=f"expected a study of the data set's classes, where class {told}"):
            read_pairs(tmp_path / "pairs.npz", (1, 4, 4), 3, names=forms)


def test_what_is_missing_damaged_or_pickled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"got no people; give the folder that holds the answers"):
        read(tmp_path, people=None)
    with pytest.raises(UsageError, match="got no changed"):
        read(tmp_path, changed=None)
    with pytest.raises(UsageError, match="without pickles"):
        read(tmp_path, group=numpy.array([{}] * 6, object))
    with pytest.raises(UsageError, match=r"a class for each pair, got shape \[0\]"):
        read(tmp_path, label=numpy.zeros(0, int))
    with pytest.raises(UsageError, match="at most 20 different texts, got 30"):
        read(tmp_path, count=30, group=numpy.arange(30).astype(str))
    file = tmp_path / "pairs.npz"
    for content in (b"", b"PK\x03\x04 broken", b"<html>", file.read_bytes()[:300]):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=r"pairs\.npz"):
            read_pairs(file)
    numpy.save(tmp_path / "one.npy", numpy.zeros(3))
    with pytest.raises(UsageError, match=r"got a single one \(\.npy\)"):
        read_pairs(tmp_path / "one.npy")


def test_a_digest_is_of_the_pairs_and_answers_alone(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        numpy.savez(tmp_path / folder / "pairs.npz", **arrays())
        (tmp_path / folder / "ann.csv").write_text("x")
    (tmp_path / "second/study.html").write_text("a page is not read")
    first, second = (human_digest(str(tmp_path / folder)) for folder in ("first", "second"))
    (tmp_path / "second/bob.csv").write_text("y")
    assert first == second != human_digest(str(tmp_path / "second"))
    assert human_files(str(tmp_path / "first"))[1] == [str(tmp_path / "first/ann.csv")]
    (tmp_path / "first/ann.csv").unlink()
    with pytest.raises(UsageError, match=r"expected answers \(\*\.csv\) beside pairs\.npz, got none"):
        human_files(str(tmp_path / "first"))
    with pytest.raises(UsageError, match=r"got no pairs\.npz"):
        human_files(str(tmp_path))
    with pytest.raises(UsageError, match=r"got mnist_invarance \(did you mean 'mnist_invariance'\?\)"):
        human_files("mnist_invarance")


HEAD = "study,annotator,seed,trial,pair,answer,answer_name,seconds"


def answers(folder: Path, pairs: HumanPairs, name: str, given: dict[int, int], file: str = "", seed: int = 7) -> str:
    lines = [f"{pairs.study},{name},{seed},{t},{pair},{a},?,1.0" for t, (pair, a) in enumerate(given.items())]
    path = folder / f"{file or name}.csv"
    path.write_text("\n".join([HEAD, *lines]) + "\n")
    return str(path)


@pytest.fixture
def study(tmp_path: Path) -> HumanPairs:
    """Four pairs to ask about, and two trials of attention: 2 and 0."""
    return read(tmp_path, catch=numpy.array([-1, -1, -1, -1, 2, 0]))


RIGHT = {4: 2, 5: 0}


def test_most_people_decide_and_ties_decide_nothing(study: HumanPairs, tmp_path: Path) -> None:
    given = [{0: 1, 1: 2, 2: 0}, {0: 1, 1: 1, 2: -1}, {0: 0, 2: -1}]
    paths = [answers(tmp_path, study, f"p{number}", RIGHT | each) for number, each in enumerate(given)]
    found = agreement_of(study, paths, 3)
    assert found.people.tolist() == [1, -1, -1, -1, 2, 0] and not found.excluded
    assert found.agreement == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)  # of trials of attention everybody knows it


def test_fewer_than_half_are_no_majority(study: HumanPairs, tmp_path: Path) -> None:
    """Two of five say what nobody else says: three of them see other things, and nothing is decided."""
    given = [1, 1, 2, 0, -1]
    paths = [answers(tmp_path, study, f"q{number}", RIGHT | {0: each}) for number, each in enumerate(given)]
    assert agreement_of(study, paths, 3).people[0] == -1
    assert agreement_of(study, paths[:3], 3).people[0] == 1


def test_who_fails_trials_of_attention_does_not_count(study: HumanPairs, tmp_path: Path) -> None:
    paths = [answers(tmp_path, study, "ann", {**RIGHT, 0: 1})]
    paths += [answers(tmp_path, study, name, {4: 2, 5: 1, 0: 2}) for name in ("bob", "bea")]
    paths += [answers(tmp_path, study, "cy", {0: 2})]
    found = agreement_of(study, paths, 3)
    assert found.people.tolist() == [1, -1, -1, -1, 2, 0] and found.annotators == ["ann (seed 7)"]
    assert found.excluded == {
        "bob (seed 7)": "failed 1 of 2 catch trials",
        "bea (seed 7)": "failed 1 of 2 catch trials",
        "cy (seed 7)": "answered none of the catch trials",
    }


def test_answers_saved_half_way_and_at_the_end_are_one_annotators(study: HumanPairs, tmp_path: Path) -> None:
    paths = [
        answers(tmp_path, study, "ann", {0: 1, **RIGHT}, "half"),
        answers(tmp_path, study, "ann", {0: 1, 1: 2, **RIGHT}),
    ]
    paths += [answers(tmp_path, study, "bob", {0: 2, **RIGHT}, seed=8)]
    found = agreement_of(study, paths, 3)
    assert found.annotators == ["ann (seed 7)", "bob (seed 8)"]
    assert found.people.tolist() == [-1, 2, -1, -1, 2, 0]
    with pytest.raises(UsageError, match="expected one answer of ann"):
        agreement_of(study, [*paths, answers(tmp_path, study, "ann", {0: 0}, "differs")], 3)


def test_who_started_twice_is_not_two_annotators(study: HumanPairs, tmp_path: Path) -> None:
    """Nor are two people of one name one: only the user knows which it is."""
    first = answers(tmp_path, study, "ann", {0: 1, **RIGHT})
    again = answers(tmp_path, study, "ann", {0: 1, 1: 2, **RIGHT}, "again", seed=8)
    with pytest.raises(UsageError) as told:
        agreement_of(study, [first, again], 3)
    assert f"{again}: expected one seed of ann, who has seed 7 in {first}, got seed 8; keep one" in str(told.value)
    assert "give one another name (two people of one name)" in str(told.value) and "\n" not in str(told.value)
    both = tmp_path / "both.csv"
    both.write_text(Path(first).read_text() + "\n".join(Path(again).read_text().splitlines()[1:]))
    with pytest.raises(UsageError, match="expected one seed of ann"):
        agreement_of(study, [str(both)], 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pair,answer\n0,1\n", "expected the columns study, annotator, seed, pair, answer, got no study"),
        (f"{HEAD}\n", "expected answers, got none"),
        (f"{HEAD}\n123,ann,7,0,0,1,?,1\n", "line 2: expected answers to the pairs beside it"),
        (f"{HEAD}\nSTUDY,ann,7,0,6,1,?,1\n", "line 2: expected a pair from 0 to 5, got 6"),
        (f"{HEAD}\nSTUDY,ann,7,0,0,3,?,1\n", "line 2: expected an answer from -1 to 2, got 3"),
        (f"{HEAD}\nSTUDY,ann,7,0,0,cat,?,1\n", "line 2: expected whole numbers for pair and answer, got 0 and cat"),
        (f"{HEAD}\nSTUDY,ann,7,0,0,1,?,1\nSTUDY,ann,7,1,0,2,?,1\n", "line 3: expected one answer to pair 0"),
        (f"{HEAD}\nSTUDY,ann\n", "line 2: expected whole numbers for pair and answer, got None and None"),
    ],
)
def test_mistakes_in_answers_are_told_by_line(text: str, message: str, study: HumanPairs, tmp_path: Path) -> None:
    (tmp_path / "ann.csv").write_text(text.replace("STUDY", study.study))
    with pytest.raises(UsageError) as told:
        agreement_of(study, [str(tmp_path / "ann.csv")], 3)
    assert message in str(told.value) and "ann.csv" in str(told.value)
