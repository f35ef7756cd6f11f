"""A study with people from end to end: measure, make the page, answer on it, measure against the answers."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import subprocess
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from PIL import Image

from cli.main import main
from datasets.human_pairs import HumanPairs, read_pairs
from datasets.registry import load_dataset
from runners.evaluate_threat.study import _sample
from tests.browser import CHROMIUM, look_at
from tests.conftest import PROJECT, Command

MEASURED = ["evaluate_threat", "--dataset_name=digits", "--per_label=10", "--num_examples=40", "--severities=1,5"]
MEASURED += ["--suites=C", "--bootstrap=100"]
NODE = shutil.which("node")


@pytest.fixture(scope="module")
def kit(digits_root: Command) -> Path:
    """The folder of the kit, as a user makes it."""
    digits_root.ok(*MEASURED)
    done = digits_root("report", "--dataset_name=digits", "--human_kit")
    assert done.returncode == 0, done.stderr
    assert "a study of 220 pairs for people: human_kit/study.html" in done.stdout
    return digits_root.where("report", "--dataset_name=digits") / "human_kit"


@pytest.fixture(scope="module")
def pairs(kit: Path) -> HumanPairs:
    return read_pairs(kit / "pairs.npz", (1, 8, 8), 10, needs_people=False)


@pytest.fixture(scope="module")
def shown(kit: Path) -> dict[str, Any]:
    """The content of the page."""
    found = re.search(r'id="study">(.*?)</script>', (kit / "study.html").read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_pairs_are_changes_that_were_measured(pairs: HumanPairs, digits_root: Command) -> None:
    """Half of them safe, each as long as examples.npz says, but for rounding to 8 bits."""
    directory = digits_root.where(*MEASURED)
    table = json.loads((directory / "result.json").read_text())["table"]
    columns = {f"{row['perturbation']} {row['severity']:g}": c for c, row in enumerate(table)}
    with numpy.load(directory / "examples.npz", allow_pickle=False) as file:
        rows = dict(file)
    images = load_dataset("digits").test.images[rows["index"]].numpy()
    asked = numpy.flatnonzero(pairs.catch < 0)
    assert len(asked) == 200 and (pairs.group[asked] == "safe").sum() == 100
    assert set(pairs.group[asked]) == {"safe", "unsafe", "dose"} and len(set(pairs.change[asked])) == 38 + 6
    for pair in asked:
        (row,) = numpy.flatnonzero((images == pairs.clean[pair]).all((1, 2, 3)))[:1]
        assert rows["label"][row] == pairs.label[pair]
        length = numpy.sqrt((((pairs.changed[pair].astype(float) - pairs.clean[pair]) / 255) ** 2).sum())
        assert length == pytest.approx(rows["L2"][row, columns[str(pairs.change[pair])]], abs=8 * 0.5 / 255 + 1e-5)
    caught = numpy.flatnonzero(pairs.catch >= 0)
    same = (pairs.clean[caught] == pairs.changed[caught]).all((1, 2, 3))
    assert same.sum() == 10 and (pairs.catch[caught] == pairs.label[caught]).tolist() == same.tolist()
    test = load_dataset("digits").test
    for pair in caught:
        (found,) = numpy.flatnonzero((test.images.numpy() == pairs.changed[pair]).all((1, 2, 3)))[:1]
        assert test.labels[found] == pairs.catch[pair]


def test_the_page_shows_the_pairs_and_tells_no_answer(kit: Path, pairs: HumanPairs, shown: dict[str, Any]) -> None:
    assert shown["id"] == pairs.study and shown["classes"] == [str(number) for number in range(10)]
    assert set(shown) == {"id", "classes", "pairs"}
    for before, after, pngs in zip(pairs.clean, pairs.changed, shown["pairs"], strict=True):
        for image, png in zip((before, after), pngs, strict=True):
            read = Image.open(io.BytesIO(base64.b64decode(png)))
            assert numpy.array_equal(numpy.asarray(read), image[0])
    page = (kit / "study.html").read_text()
    assert not re.search(r"https?:|<script src|<link rel=.stylesheet|@import|url\(|fetch\(|XMLHttp|sendBeacon", page)
    assert "default-src 'none'" in page


def shuffled(count: int, seed: int) -> list[int]:
    """The order of a seed, by mulberry32 and Fisher and Yates, in Python."""
    rows, state = list(range(count)), seed

    def signed_shift(t: int, by: int) -> int:
        return (t & 0xFFFFFFFF) >> by

    def draw() -> float:
        nonlocal state
        state = (state + 0x6D2B79F5) & 0xFFFFFFFF
        t = ((state ^ signed_shift(state, 15)) * (1 | state)) & 0xFFFFFFFF
        t = ((t + ((t ^ signed_shift(t, 7)) * (61 | t) & 0xFFFFFFFF)) & 0xFFFFFFFF) ^ t
        return ((t ^ signed_shift(t, 14)) & 0xFFFFFFFF) / 2**32

    for last in range(count - 1, 0, -1):
        other = int(draw() * (last + 1))
        rows[last], rows[other] = rows[other], rows[last]
    return rows


def seen_by_people(pairs: HumanPairs) -> numpy.ndarray:
    """The answers of the annotators of these tests: the class of the image, and the next one after an unsafe change."""
    other = numpy.isin(pairs.group, ("unsafe", "dose"))
    return numpy.where(pairs.catch >= 0, pairs.catch, (pairs.label + other) % 10)


def answers_by_picture(pairs: HumanPairs, shown: dict[str, Any]) -> dict[str, int]:
    """The picture to the right -> what the annotators see; the few that occur twice have one answer."""
    found: dict[str, int] = {}
    for (_, after), answer in zip(shown["pairs"], seen_by_people(pairs).tolist(), strict=True):
        found.setdefault(after, answer)
    return found


def check_answers(text: str, pairs: HumanPairs, shown: dict[str, Any], annotator: str) -> None:
    """The .csv says who was asked what in which order, and what he answered."""
    rows = list(csv.DictReader(io.StringIO(text)))
    known = answers_by_picture(pairs, shown)
    assert {(row["study"], row["annotator"]) for row in rows} == {(pairs.study, annotator)}
    (seed,) = {int(row["seed"]) for row in rows}
    order = shuffled(len(pairs), seed)
    assert order != sorted(order) and [int(row["pair"]) for row in rows] == order[: len(rows)]
    assert [int(row["trial"]) for row in rows] == list(range(len(rows)))
    assert all(int(row["answer"]) == known[shown["pairs"][int(row["pair"])][1]] for row in rows)
    assert all(row["answer_name"] == row["answer"] and float(row["seconds"]) >= 0.15 for row in rows)


@pytest.mark.skipif(NODE is None, reason="no node on this machine")
def test_the_script_asks_keeps_and_saves(kit: Path, pairs: HumanPairs, shown: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text(json.dumps(answers_by_picture(pairs, shown)))
    script = PROJECT / "tests/runners/fake_page.js"
    words = [str(NODE), str(script), str(kit / "study.html"), str(tmp_path / "answers.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["hasty"], told["answered"], told["back"]) == ("1 of 220", "2 of 220", "1 of 220")
    assert told["earlier"] == ["Ann_B_: 50 of 220"] and told["ended"]
    assert told["unkeptBefore"] and not told["unkept"]
    name, text = told["saved"]
    assert re.fullmatch(r"answers_Ann_B__\d+\.csv", name) and text.count("\n") == 221
    assert text.startswith(told["half"][1]) and told["half"][1].count("\n") == 51
    check_answers(text, pairs, shown, "Ann_B_")


# Starts, answers every pair by clicks and keys in turn, and saves.
PROBE = """
const known = KNOWN, frame = document.querySelector("iframe");
frame.addEventListener("load", async () => {
  const view = frame.contentWindow, page = frame.contentDocument, at = (id) => page.getElementById(id);
  const wait = (time) => new Promise((done) => setTimeout(done, time));
  const seen = { errors: view.seenErrors, width: page.documentElement.clientWidth, sizes: [], visible: [] };
  const look = () => {
    seen.visible.push(["start", "trial", "end"].filter((id) => at(id).getBoundingClientRect().height > 0).join());
    seen.scroll = Math.max(seen.scroll || 0, page.documentElement.scrollWidth);
  };
  look();
  at("name").value = "Bob";
  at("form").querySelector("button").click();
  look();
  view.Blob = class extends view.Blob {
    constructor(parts, options) { super(parts, options); seen.text = parts.join(""); }
  };
  for (let number = 0; at("end").hidden && number < 500; number++) {
    await wait(200);
    seen.sizes.push(at("after").naturalWidth);
    const answer = String(known[at("after").src.replace("data:image/png;base64,", "")]);
    if (number % 2) page.dispatchEvent(new view.KeyboardEvent("keydown", { key: answer }));
    else page.querySelector(`#choices button[data-answer="${answer}"]`).click();
  }
  look();
  // A browser without a window may wait for ever when it is to save a file.
  view.HTMLAnchorElement.prototype.click = function () { seen.file = this.download; };
  at("save").click();
  const kept = JSON.parse(view.localStorage.getItem(`nonisotropic-study-${STUDY}`));
  seen.kept = Object.values(kept).map((session) => session.answers.length);
  document.querySelector("pre").textContent = JSON.stringify(seen);
});
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [400, 1000])
def test_in_a_browser(kit: Path, pairs: HumanPairs, shown: dict[str, Any], tmp_path: Path, width: int) -> None:
    probe = PROBE.replace("KNOWN", json.dumps(answers_by_picture(pairs, shown))).replace("${STUDY}", pairs.study)
    seen = look_at(kit / "study.html", width, tmp_path, probe=probe, milliseconds=120000)
    assert seen["errors"] == [] and seen["console"] == []
    assert seen["visible"] == ["start", "trial", "end"] and seen["scroll"] <= seen["width"]
    assert seen["sizes"] == [8] * 220 and seen["kept"] == [220]
    assert re.fullmatch(r"answers_Bob_\d+\.csv", seen["file"])
    check_answers(seen["text"], pairs, shown, "Bob")


def write_answers(folder: Path, pairs: HumanPairs, name: str, given: numpy.ndarray) -> None:
    lines = [f"{pairs.study},{name},1,{pair},{answer}" for pair, answer in enumerate(given)]
    (folder / f"{name}.csv").write_text("\n".join(["study,annotator,seed,pair,answer", *lines]) + "\n")


def test_the_answers_judge_the_threats(kit: Path, pairs: HumanPairs, digits_root: Command, tmp_path: Path) -> None:
    """Two annotators of one mind, one who sees no change anywhere, and one who does not look."""
    folder = Path(shutil.copytree(kit, tmp_path / "study"))
    seen = seen_by_people(pairs)
    for name, given in (("ann", seen), ("bob", seen), ("cy", numpy.where(pairs.catch >= 0, seen, pairs.label))):
        write_answers(folder, pairs, name, given)
    write_answers(folder, pairs, "dan", numpy.zeros(len(pairs), int))
    done = digits_root(*MEASURED, f"--human={folder}")
    assert done.returncode == 0, done.stderr
    human = json.loads((digits_root.where(*MEASURED, f"--human={folder}") / "result.json").read_text())["human"]
    assert human["num_pairs"] == 200 and human["changed"] == 100 and human["left_out"]["trials of attention"] == 20
    assert human["study"]["annotators"] == 3 and list(human["study"]["excluded"]) == ["dan (seed 1)"]
    assert human["study"]["agreement"] == pytest.approx((100 + 100 * 2 / 3) / 200, abs=1e-6)
    assert human["auroc"]["PD"]["auroc"] > 0.8
    assert {name: part["auroc"] for name, part in human["by_group"].items()} == {"safe": {}, "unsafe": {}, "dose": {}}
    assert "3 annotators, by majority" in done.stdout and "dan (seed 1) does not count: failed" in done.stdout


def test_mistakes(kit: Path, pairs: HumanPairs, digits_root: Command, tmp_path: Path, capsys: Any) -> None:
    assert main(["report", "--human_kit", "--display_output_location"]) == 2
    assert "--human_kit: expected --dataset_name, got none" in capsys.readouterr().err
    root = Command(tmp_path)
    shutil.copytree(digits_root.root / "runs", tmp_path / "runs")
    (tmp_path / digits_root.where(*MEASURED).relative_to(digits_root.root) / "study_pairs.npz").unlink()
    for copy in (tmp_path / "runs/digits/evaluate_threat").glob("*/*/study_pairs.npz"):
        copy.unlink()
    done = root("report", "--dataset_name=digits", "--human_kit")
    assert done.returncode == 1 and "evaluate_threat --dataset_name=digits --evaluate_replicate=2" in done.stderr
    # answers to other pairs lie there: new pairs would make them worthless
    folder = Path(shutil.copytree(kit.parent, tmp_path / "reports/digits")) / "human_kit"
    shutil.copytree(digits_root.root / "runs", tmp_path / "runs", dirs_exist_ok=True)
    write_answers(folder, pairs, "ann", seen_by_people(pairs))
    assert root("report", "--dataset_name=digits", "--human_kit").returncode == 0
    with numpy.load(folder / "pairs.npz", allow_pickle=False) as file:
        numpy.savez(folder / "pairs.npz", **(dict(file) | {"changed": 255 - file["changed"]}))
    done = root("report", "--dataset_name=digits", "--human_kit")
    assert done.returncode == 1 and "holds answers (ann.csv) to other pairs" in done.stderr


def test_nobody_is_asked_about_a_pair_twice() -> None:
    """Few images and few changes: all of their pairs, each once."""
    values = numpy.zeros((4, 6))
    values[0, 0] = numpy.nan
    measurement: Any = SimpleNamespace(threats={"PD": values})
    generator = numpy.random.default_rng(0)
    found = _sample(measurement, [0, 1, 2], 50, cycle(range(4)), generator)
    assert len(found) == len(set(found)) == 11 and (0, 0) not in found
