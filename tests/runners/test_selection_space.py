"""--selection_space as a user gives it, on a folder of small colour images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from cli.main import runner_parser
from foundations.desc import derive_seed
from foundations.environment import Environment
from runners.compute_threat.desc import ThreatDesc
from runners.evaluate_threat.desc import EvaluateThreatDesc
from runners.evaluate_threat.runner import EvaluateThreat
from tests.conftest import Command
from tests.datasets.written import write_folders
from threat_specification import AnchorSet, ProjectedDisplacement

CLASSES, COUNT, PER_LABEL, SIDE = ("bird", "fish", "newt"), 24, 6, 6
PLAIN = (numpy.zeros(3), numpy.ones(3))
ANCHORS_SEED = derive_seed(0, 1, "anchors")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Bright images; what tells them apart in blue is small."""
    root = tmp_path_factory.mktemp("colour")
    rng = numpy.random.default_rng(1)
    for part, count in (("train", COUNT), ("test", 4)):
        for name in CLASSES:
            folder = root / "own" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal((170, 120, 225), (50, 60, 4), (SIDE, SIDE, 3)).clip(0, 255).astype(numpy.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return Command(root)


def words(place: Command, *more: str, runner: str = "compute_threat") -> list[str]:
    data = ["--dataset_name=image_folder", f"--data_dir={place.root / 'own'}", f"--image_size={SIDE}"]
    return [runner, *data, f"--per_label={PER_LABEL}", *more]


def images(place: Command, name: str) -> numpy.ndarray:
    """The training images of a class, [n, D] float64 with the channels one after the other."""
    files = sorted((place.root / "own" / "train" / name).iterdir())
    return numpy.stack([numpy.asarray(Image.open(file)).transpose(2, 0, 1).reshape(-1) for file in files]) / 255


def farthest_first(features: numpy.ndarray, count: int) -> list[int]:
    """All similarities anew for every pick."""
    unit = features / numpy.sqrt((features**2).sum(1, keepdims=True))
    picks = [0]
    while len(picks) < count:
        nearest = [max(float(unit[row] @ unit[pick]) for pick in picks) for row in range(len(unit))]
        left = [row for row in range(len(unit)) if row not in picks]
        picks.append(min(left, key=lambda row: nearest[row]))
    return picks


def expected_rows(
    place: Command, mean: numpy.ndarray, std: numpy.ndarray, seed: int = ANCHORS_SEED, count: int = PER_LABEL
) -> list[int]:
    """The rows that the two half-sets of each class have, by loops in float64."""
    rows = []
    for label, name in enumerate(CLASSES):
        features = (images(place, name) - mean.repeat(SIDE**2)) / std.repeat(SIDE**2)
        generator = torch.Generator().manual_seed((seed + label) % 2**63)
        halves = numpy.split(torch.randperm(COUNT, generator=generator).numpy(), 2)
        for half, size in zip(halves, (count - count // 2, count // 2), strict=True):
            rows += [label * COUNT + int(half[pick]) for pick in farthest_first(features[half], size)]
    return rows


def statistics(place: Command) -> tuple[numpy.ndarray, numpy.ndarray]:
    pixels = numpy.concatenate([images(place, name) for name in CLASSES]).reshape(-1, 3, SIDE**2)
    return pixels.mean((0, 2)), pixels.std((0, 2))


def chosen(directory: Path) -> list[int]:
    anchors = AnchorSet.load(directory / "anchors.safetensors")
    assert anchors.indices is not None
    return anchors.indices.tolist()


def test_anchors_of_both_spaces_against_loops(place: Command) -> None:
    made = {space: place.ok(*words(place, f"--selection_space={space}")) for space in ("raw", "normalised")}
    assert chosen(made["raw"]) == expected_rows(place, *PLAIN)
    assert chosen(made["normalised"]) == expected_rows(place, *statistics(place))
    assert chosen(made["raw"]) != chosen(made["normalised"])


def test_coverage_says_which_space(place: Command) -> None:
    """`coverage` is of raw pixels in every run; beside it that of normalised images, where those were compared."""
    directory = place.ok(*words(place, "--selection_space=normalised"))
    result = json.loads((directory / "result.json").read_text())
    for key, shift, scale in (
        ("coverage", *PLAIN),
        ("coverage_normalised", *statistics(place)),
    ):
        for label, name in enumerate(CLASSES):
            features = (images(place, name) - shift.repeat(SIDE**2)) / scale.repeat(SIDE**2)
            unit = features / numpy.sqrt((features**2).sum(1, keepdims=True))
            mine = [row - label * COUNT for row in chosen(directory) if row // COUNT == label]
            assert result[key][name] == pytest.approx((unit @ unit[mine].T).max(1).min(), abs=1e-5)
    assert "of normalised images to an anchor" in place(*words(place, "--selection_space=normalised")).stdout
    raw = place.result(*words(place, "--selection_space=raw"))
    assert "coverage_normalised" not in raw
    assert "of raw pixels to an anchor" in place(*words(place, "--selection_space=raw")).stdout


def test_two_processes_choose_what_one_does(place: Command, tmp_path: Path) -> None:
    """They count the pixels of half of the images each, and choose for one class each."""
    flags = words(place, "--selection_space=normalised")
    one = place.ok(*flags)
    two = Command(tmp_path).ok(*flags, processes=2)
    assert (one / "anchors.safetensors").read_bytes() == (two / "anchors.safetensors").read_bytes()
    results = [json.loads((directory / "result.json").read_text()) for directory in (one, two)]
    assert results[0]["coverage_normalised"] == results[1]["coverage_normalised"]


def test_random_anchors_are_the_same_run(place: Command) -> None:
    at = {place.where(*words(place, "--selection=random", f"--selection_space={s}")) for s in ("raw", "normalised")}
    assert len(at) == 1
    assert "coverage_normalised" not in place.result(*words(place, "--selection=random"))


def test_other_anchors_of_a_measurement_come_from_the_same_space(place: Command) -> None:
    made = {}
    for space, moments in {"raw": PLAIN, "normalised": statistics(place)}.items():
        place.ok(*words(place, f"--selection_space={space}"))
        flags = words(place, f"--selection_space={space}", "--stability")[1:]
        desc = EvaluateThreatDesc.from_flags(runner_parser("evaluate_threat", flags).parse(flags))
        runner = EvaluateThreat(desc, Environment(root_dir=place.root, data_dir=place.root / "own", quiet=True))
        runner.prepare()
        threat = runner.measures["PD[k=5]"]
        assert isinstance(threat, ProjectedDisplacement) and threat.anchors is not None
        assert threat.anchors.indices is not None
        made[space] = threat.anchors.indices.tolist()
        assert made[space] == expected_rows(place, *moments, runner.seed, 5)
    assert made["raw"] != made["normalised"]


def test_halves_that_were_compared_on_neighbours_are_compared_again() -> None:
    desc = ThreatDesc.from_flags({"dataset_name": "digits", "halves": True})
    others = {"dropped": {"count": 0}}
    assert not desc.is_satisfied_by(others | {"halves": {"examples": 3, "rank_correlation": 0.5}})
    assert desc.is_satisfied_by(others | {"halves": {"examples": 3, "rank_correlation": 0.5, "moves": "random"}})


def test_halves_are_compared_by_moves_between_all_images_of_different_classes(command: Command, tmp_path: Path) -> None:
    """In a folder they are sorted by class, so that one pair of neighbours differs: no number came out."""
    write_folders(tmp_path / "set")
    folder = ["compute_threat", "--dataset_name=image_folder", f"--data_dir={tmp_path}/set", "--image_size=16"]
    done = command(*folder, "--per_label=4", "--halves")
    found = json.loads((command.where(*folder, "--per_label=4") / "result.json").read_text())["halves"]
    assert found["examples"] == 2 * 4 * 4 and -1 <= found["rank_correlation"] <= 1 <= found["median_ratio"]
    told = f"rank correlation {found['rank_correlation']:.3f}, median ratio {found['median_ratio']:.3f} over 32 moves"
    assert told in done.stdout and "note:" not in done.stderr
    (tmp_path / "two").mkdir()
    two = Command(tmp_path / "two").result(*folder, "--per_label=4", "--halves", processes=2)
    assert two["halves"] == found
    done = command(*folder, "--per_label=4", "--halves", "--selection=k_center")
    assert done.stderr.count("note: the half-sets of --selection=k_center are two parts of one choice") == 1
    assert command(*folder, "--per_label=1", "--halves").returncode == 1

    for part in (tmp_path / "set" / "test").iterdir():
        for file in sorted(part.iterdir())[1:]:
            file.unlink()
    done = command(*folder, "--per_label=4", "--halves")
    found = json.loads((command.where(*folder, "--per_label=4") / "result.json").read_text())["halves"]
    assert found["examples"] == 2 and found["rank_correlation"] is None and found["median_ratio"] >= 1
    assert "rank correlation none, median ratio" in done.stdout
    assert "expected at least three moves to test images of another class that differ in threat, got 2" in done.stderr
