"""evaluate_threat --human as a user runs it: the packaged pairs on mnist_5k, pairs of one's own on digits."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cli.main import main, runner_parser
from datasets.human_pairs import read_pairs
from datasets.human_sets import HUMAN_SETS
from datasets.registry import load_dataset
from runners.coverage import Form, coverage_run
from runners.evaluate_threat.desc import EvaluateThreatDesc
from runners.evaluate_threat.human import _usable
from tests.conftest import Command
from threat_specification import AnchorSet, ProjectedDisplacement

FEW = ["--per_label=10", "--num_examples=20", "--suites=torchvision", "--severities=3", "--bootstrap=200"]
PACKAGED = ["evaluate_threat", "--dataset_name=mnist_5k", *FEW]
OWN = ["evaluate_threat", "--dataset_name=digits", *FEW]


@pytest.fixture(scope="module")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Command:
    root = Command(tmp_path_factory.mktemp("mnist_5k"))
    root.ok("compute_threat", "--dataset_name=mnist_5k", "--per_label=10")
    return root


@pytest.fixture(scope="module")
def told(mnist_root: Command) -> str:
    """The output of the run on the packaged pairs."""
    done = mnist_root(*PACKAGED)
    assert done.returncode == 0, done.stderr
    return done.stdout


def displacements(
    clean: numpy.ndarray, changed: numpy.ndarray, label: numpy.ndarray, anchors: AnchorSet
) -> list[float]:
    """PD of pairs by its definition, one at a time, in float64."""
    a, classes = anchors.images.flatten(1).double().numpy() / 255, anchors.labels.numpy()
    found = []
    for x, z, y in zip(clean, changed, label, strict=True):
        before, after = (image.ravel().astype(float) / 255 for image in (x, z))
        towards = a[classes != y] - before
        found.append(max(0.0, float((towards @ (after - before) / (towards**2).sum(1) * 2).max())))
    return found


def test_the_packaged_pairs_are_measured_by_default(told: str, mnist_root: Command) -> None:
    directory = mnist_root.where(*PACKAGED)
    human = json.loads((directory / "result.json").read_text())["human"]
    with numpy.load(HUMAN_SETS["mnist_invariance"].path, allow_pickle=False) as file:
        pairs = dict(file)
    path = mnist_root.where("compute_threat", "--dataset_name=mnist_5k", "--per_label=10") / "anchors.safetensors"
    values = {"PD": displacements(pairs["clean"], pairs["changed"], pairs["label"], AnchorSet.load(path))}
    change = (pairs["changed"].astype(float) - pairs["clean"]).reshape(279, -1) / 255
    values["L2"] = numpy.sqrt((change**2).sum(1))
    other = pairs["people"] != pairs["label"]
    assert {"PD", "L2", "Linf", "SSIM"} <= set(human["threats"]) and human["num_images"] == 93
    assert (human["num_pairs"], human["changed"], set(human["left_out"].values())) == (279, 103, {0})
    for name, column in values.items():
        column = numpy.array(column)
        assert human["auroc"][name]["auroc"] == pytest.approx(roc_auc_score(other, column), abs=2e-4)
        for group, part in human["by_group"].items():
            rows = pairs["group"] == group
            assert part["auroc"][name]["auroc"] == pytest.approx(roc_auc_score(other[rows], column[rows]), abs=1e-3)
            assert part["auroc"][name]["low"] < part["auroc"][name]["auroc"] < part["auroc"][name]["high"]
        comparisons = [part["changed"] * (part["num_pairs"] - part["changed"]) for part in human["by_group"].values()]
        of_groups = [part["auroc"][name]["auroc"] for part in human["by_group"].values()]
        within = human["within_groups"]["auroc"][name]["auroc"]
        assert within == pytest.approx(numpy.average(of_groups, weights=comparisons), abs=1e-5)
    for group in ("l-inf 0.3", "l-inf 0.4"):  # all changes of one size
        assert human["by_group"][group]["auroc"]["Linf"] == {"auroc": 0.5, "low": 0.5, "high": 0.5}
    rows = list(csv.DictReader((directory / "human_pairs.csv").read_text().splitlines()))
    assert [float(row["PD"]) for row in rows] == pytest.approx(values["PD"], rel=1e-4, abs=1e-5)


def test_tables_files_and_words_say_the_same(told: str, mnist_root: Command) -> None:
    directory = mnist_root.where(*PACKAGED)
    human = json.loads((directory / "result.json").read_text())["human"]
    assert "279 pairs of 93 images, of which people see another class in 103" in told
    lines = list(csv.DictReader((directory / "human.csv").read_text().splitlines()))
    assert human["threats"] == [line["threat"] for line in lines[: len(human["threats"])]]
    titles = list(dict.fromkeys(line["pairs"] for line in lines))
    assert titles == ["all pairs", "within groups", "l-inf 0.3", "l-inf 0.4", "l0"]
    for line in lines:
        part = {"all pairs": human, "within groups": human["within_groups"]}.get(line["pairs"])
        found = (part or human["by_group"][line["pairs"]])["auroc"][line["threat"]]
        assert float(line["auroc"]) == found["auroc"] and float(line["high"]) == found["high"]
        assert f"{found['auroc']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" in told
    for name in ("human", "human_pairs"):
        assert (directory / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    report = mnist_root.ok("report", "--dataset_name=mnist_5k")
    page = (report / "report.html").read_text()
    assert "What people see" in page and f"{human['within_groups']['auroc']['PD']['auroc']:.3f}" in page


def own_pairs(root: Command, path: Path) -> dict[str, numpy.ndarray]:
    """Pairs of digits: test images, each followed by one of another class, and one image that is an anchor."""
    anchors = AnchorSet.load(
        root.where("compute_threat", "--dataset_name=digits", "--per_label=10") / "anchors.safetensors"
    )
    test = load_dataset("digits").test
    clean, label = test.images[:30].numpy(), test.labels[:30].numpy()
    clean[0], label[0] = anchors.images[0].numpy(), int(anchors.labels[0])
    changed, people = clean.copy(), label.copy()
    for row in range(0, 30, 2):
        other = next(r for r in range(30) if label[r] != label[row])
        changed[row], people[row] = clean[other], label[other]
    changed[1::2] += (changed[1::2] < 250).astype(numpy.uint8)
    people[7] = -1
    made = {"clean": clean, "changed": changed, "label": label, "people": people}
    made["certain"] = numpy.arange(30) != 9
    numpy.savez(path, **made)
    return made


def test_pairs_of_ones_own_on_one_process_and_on_two(digits_root: Command, tmp_path: Path) -> None:
    """Found by content, wherever they are; uncertain ones and an anchor are left out; two processes, the same bytes."""
    own_pairs(digits_root, tmp_path / "mine.npz")
    words = [*OWN, f"--human={tmp_path / 'mine.npz'}"]
    directory = digits_root.ok(*words)
    human = json.loads((directory / "result.json").read_text())["human"]
    assert human["left_out"] == {
        "trials of attention": 0,
        "class not certain": 1,
        "people see no class, or do not agree": 1,
        "the image is an anchor": 1,
    }
    assert human["num_pairs"] == 27 and human["changed"] == 14 and set(human["by_group"]) == {""}
    # No resample differs: the interval is that of 13 successes in 13, the images of the rarer answer.
    assert human["auroc"]["PD"] == {"auroc": 1.0, "low": pytest.approx(13 / (13 + 1.959964**2), abs=1e-6), "high": 1.0}
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(tmp_path / "mine.npz", tmp_path / "elsewhere/other_name.npz")
    assert digits_root.where(*OWN, f"--human={moved}") == directory != digits_root.where(*OWN)
    assert str(tmp_path) not in (directory / "hparams.json").read_text()
    copy = Command(tmp_path / "copy")
    shutil.copytree(digits_root.root / "runs/digits/compute_threat", copy.root / "runs/digits/compute_threat")
    again = copy.ok(*words, processes=2)
    for name in ("human.csv", "human_pairs.csv", "study_pairs.npz", "examples.npz"):
        assert (again / name).read_bytes() == (directory / name).read_bytes(), name


def test_pairs_without_an_object_are_left_out(digits_root: Command, tmp_path: Path) -> None:
    """Their changes had threat 0 by the segmented form, whatever people saw."""
    own_pairs(digits_root, tmp_path / "mine.npz")
    data = load_dataset("digits")
    pairs = read_pairs(tmp_path / "mine.npz", data.info.shape, data.info.num_classes)
    known = torch.from_numpy(pairs.clean[5:8]).float() / 255
    anchors = AnchorSet(data.train.images[:50], data.train.labels[:50])

    def masks(images: torch.Tensor) -> torch.Tensor:
        empty = (images.unsqueeze(1) == known).flatten(2).all(2).any(1)
        return ~empty.view(-1, 1, 1, 1).expand(-1, 1, 8, 8)

    plain = ProjectedDisplacement(anchors=anchors)
    segmented = ProjectedDisplacement(anchors=anchors, segmented=True, mask_source=masks)
    before, told = _usable(pairs, {"PD": plain})
    chosen, left_out = _usable(pairs, {"PD": plain, "PD-S": segmented})
    assert (before & ~chosen).nonzero()[0].tolist() == [5, 6]  # the eighth shows people nothing
    assert left_out == told | {"the image has an empty mask": 2}


def described(*words: str) -> EvaluateThreatDesc:
    return EvaluateThreatDesc.from_flags(runner_parser("evaluate_threat", list(words)).parse(list(words)))


def test_hashes_change_where_people_are_asked_and_nowhere_else() -> None:
    for name in ("digits", "fashion_mnist", "cifar10"):
        assert "human" not in described(f"--dataset_name={name}").hashed()
    named, default = (
        described("--dataset_name=mnist_5k", "--human=mnist_invariance"),
        described("--dataset_name=mnist_5k"),
    )
    without = described("--dataset_name=mnist_5k", "--human=")
    by_path = described("--dataset_name=mnist_5k", f"--human={HUMAN_SETS['mnist_invariance'].path}")
    assert named.hash == default.hash == by_path.hash != without.hash and "human" not in without.hashed()


def test_thresholds_by_coverage_are_those_of_the_default_measurement() -> None:
    words = ["--dataset_name=mnist_5k", "--model_name=lenet", "--N_adv_eval", "--N_coverage=0.95"]
    values = runner_parser("test", words).parse(words)
    assert coverage_run(values, Form(False, ("", ""), "", 0.1)).hash == described("--dataset_name=mnist_5k").hash


@pytest.mark.parametrize(
    ("name", "human", "message"),
    [
        (
            "fashion_mnist",
            "mnist_invariance",
            "expected a data set whose images people saw (mnist, mnist_5k), got fashion",
        ),
        ("digits", "nowhere.npz", "expected a packaged set (mnist_invariance), a file .npz or the folder of a study"),
        ("mnist_5k", "mnist_invarince", "(did you mean 'mnist_invariance'?)"),
    ],
)
def test_mistakes(name: str, human: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate_threat", f"--dataset_name={name}", f"--human={human}", "--display_output_location"]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_pairs_of_other_images_are_refused_before_anything_is_written(digits_root: Command, tmp_path: Path) -> None:
    path = shutil.copy(HUMAN_SETS["mnist_invariance"].path, tmp_path / "mnist.npz")
    done = digits_root(*OWN, f"--human={path}")
    assert done.returncode == 2 and "expected clean: uint8 [279, 1, 8, 8], got uint8 [279, 1, 28, 28]" in done.stderr
    assert not digits_root.where(*OWN, f"--human={path}").exists()
    made = own_pairs(digits_root, tmp_path / "mine.npz")
    numpy.savez(tmp_path / "unsure.npz", **(made | {"certain": numpy.zeros(30, bool)}))
    done = digits_root(*OWN, f"--human={tmp_path / 'unsure.npz'}")
    assert done.returncode == 2 and "expected pairs with an answer, got none that can be used" in done.stderr
    numpy.savez(tmp_path / "letters.npz", **made, classes=numpy.array(list("abcdefghij")))
    done = digits_root(*OWN, f"--human={tmp_path / 'letters.npz'}")
    assert done.returncode == 2 and "where class 0 is 0, got one where it is a" in done.stderr
