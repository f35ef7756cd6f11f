"""The best model, and those that cannot be told from it: from the figures of results alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy
import pytest

from runners.report import charts
from runners.report.answer import answer
from runners.report.collect import FinishedRun
from runners.report.comparable import comparable, leading_measurement, measured_alike
from runners.report.highlights import found_in
from runners.report.labels import tell_apart
from runners.report.standing import OnCommon
from runners.report.tables import by_accuracy
from runners.test.summary import MOVES, OTHER_ANCHORS, hardest_last


def run(name: str, accuracy: float, count: int, attacks: tuple[str, ...] = ("apgd_ce", "pgd")) -> FinishedRun:
    found: dict[str, Any] = {"accuracy": accuracy, "num_examples": count, "norm": "PD", "threshold": 0.1, "radius": 0.3}
    found |= {"attacks": dict.fromkeys(attacks, accuracy), "warnings": []}
    hparams = {"name": name, "replicate": 1, "hashed": {}}
    return FinishedRun(Path(name), name, hparams, {"N_adv": found})


def first(*tests: FinishedRun) -> str:
    return answer({"test": list(tests), "evaluate_threat": []})[0]


def test_a_model_measured_on_few_images_cannot_be_told_from_the_best_one() -> None:
    told = first(run("many", 0.60, 10_000), run("few", 0.55, 20))
    assert "many stands best of 2" in told and told.endswith("; few cannot be told from it by so few images.")
    assert "cannot be told" not in first(run("many", 0.60, 10_000), run("more", 0.50, 10_000))


def test_a_model_under_fewer_attacks_is_not_ranked_with_others() -> None:
    told = first(run("strong", 0.4, 500), run("other", 0.3, 500), run("hardly attacked", 0.9, 500, ("pgd",)))
    assert "strong stands best of 2" in told and "hardly" not in told


HASHED = {"dataset": {"dataset_name": "image_folder", "data_dir": "abc"}, "anchors": {"hash": "h", "replicate": 1}}
TESTING = {"N_attack_iter": 40, "projection": "exact", "num_examples": 500, "standard_eval": True}


def described(name: str, accuracy: float, **others: Any) -> FinishedRun:
    """A run with its hashed flags; `others` are flags of `test`, or a group of flags as a dictionary."""
    groups = {key: value for key, value in others.items() if isinstance(value, dict)}
    flags = {key: value for key, value in others.items() if key not in groups}
    made = run(name, accuracy, 500)
    made.hparams["hashed"] = HASHED | {"testing": TESTING | flags} | groups
    return made


@pytest.mark.parametrize(
    "others",
    [
        {"N_attack_iter": 1},
        {"projection": "scale"},
        {"tangents": "blur"},
        {"anchors": {"hash": "other", "replicate": 1}},
        {"dataset": {"dataset_name": "image_folder", "data_dir": "other"}},
    ],
    ids=str,
)
def test_what_else_makes_figures_incomparable(others: dict[str, Any]) -> None:
    """The model that was hardly attacked was said to stand best, on the page and in the terminal."""
    tests = [described("one", 0.5), described("two", 0.4), described("hardly", 0.9, **others)]
    assert "one stands best of 2" in first(*tests) and "hardly" not in first(*tests)
    (line,) = (line for line in found_in({"set": {"test": tests, "evaluate_threat": []}}) if "accuracy of" in line)
    assert line.startswith("set: accuracy of the most robust of 2 models, one: ")


def test_of_two_ways_the_stronger_one_speaks_in_whatever_order_of_folders() -> None:
    """One model under one step and under 40: the headline was the weaker of the two, 99 % where 10 % are left."""
    weak, strong = described("one", 0.99, N_attack_iter=1), described("one", 0.1)
    few = described("one", 0.05, tangents="blur")
    few.result["N_adv"]["num_examples"] = 20
    for tests in itertools.permutations([weak, strong, few]):
        assert "one is right on 10.0% of 500 images" in first(*tests)
        assert "; 2 other ways of measuring it stand in the table" in first(*tests)
        (line,) = found_in({"set": {"test": list(tests), "evaluate_threat": []}})[:1]
        assert line.startswith("set: accuracy of one: ") and " 0.100 " in line and "; 2 other ways of measuring" in line
    assert "other way" not in first(strong) and "; 1 other way of measuring it stands in the table" in first(weak, few)


def test_equal_figures_stand_in_the_order_of_names() -> None:
    for tests in itertools.permutations([described("a", 0.5), described("b", 0.5), described("c", 0.5)]):
        assert "a stands best of 3" in first(*tests)


@pytest.mark.parametrize(
    ("measured", "then", "now"),
    [
        ("corruption", {}, {"corruption_versions": {"fog": 2}}),
        ("corruption", {"corruption_versions": {"fog": 1, "snow": 2}}, {"corruption_versions": {"fog": 2, "snow": 2}}),
        ("corruption", {}, {"mended": ["corruptions without the severity"]}),
        (MOVES, {}, {"corruption_versions": {"fog": 2}}),
        (MOVES, {}, {"mended": ["images with empty masks"]}),
        ("N_adv", {}, {"mended": ["images with empty masks"]}),
        ("standard", {}, {"mended": ["samples of the first classes"]}),
    ],
)
def test_figures_of_other_images_of_corruptions_are_not_ranked_together(
    measured: str, then: dict[str, Any], now: dict[str, Any]
) -> None:
    """Nor figures that had a fault beside those since its mend: an old run was said to stand best."""
    flags = {"corruption_eval": True, "corruption_suites": "torchvision:3", "segmented": True, "mask_source": "grabcut"}
    faults = {"mended": ["corruptions without the severity", "images with empty masks", "samples of the first classes"]}

    def of(name: str, accuracy: float, hashed: dict[str, Any]) -> FinishedRun:
        found = {"accuracy": accuracy, "num_examples": 500, "by_corruption": {"fog": {}}, "single": {"fog:3": 0.5}}
        made = finished(name, {measured: found})
        made.hparams["hashed"] = faults | {"testing": TESTING | flags} | hashed
        return made

    # A fault that is not in `mended` is still in the figures.
    then = then | {"mended": [fault for fault in faults["mended"] if fault not in now.get("mended", ())]}
    now = {name: value for name, value in now.items() if name != "mended"}
    tests = [of("one", 0.5, now), of("two", 0.4, now), of("old", 0.9, then)]
    assert [each.label for each in comparable(measured, tests)] == ["one", "two"]


def test_versions_and_faults_of_other_evaluations_do_not_matter() -> None:
    """A change of quick, which only the safe moves of one run had, says nothing of corruptions; nor has a proof."""
    hashed = [{"corruption_versions": {"shift": 2}}, {"mended": ["proofs of small layers and large logits"]}, {}]
    tests = []
    for number, each in enumerate(hashed):
        found = {"accuracy": 0.5, "num_examples": 500, "by_corruption": {"fog": {}, "fog (file)": {}}}
        tests.append(finished(f"model {number}", {"corruption": found}))
        tests[-1].hparams["hashed"] = {"testing": {"corruption_eval": True, "corruption_suites": "C"}} | each
    assert len(comparable("corruption", tests)) == 3


def test_what_does_not_matter_to_the_figure() -> None:
    half = {"dataset": HASHED["dataset"] | {"subsample_fraction": 0.5}}
    tests = [described("one", 0.5), described("two", 0.6, standard_eval=False), described("three", 0.4, **half)]
    assert "two stands best of 3" in first(*tests)


def test_of_several_figures_of_a_model_the_lowest_counts() -> None:
    tests = [described("one", 0.7, shard_size=10), described("one", 0.5), described("one", 0.6, shard_size=20)]
    assert "one is right on 50.0% of 500 images" in first(*tests)


def test_models_of_two_folders_of_images_are_told_apart_by_these() -> None:
    tests = []
    for key, folder in (("a", "/data/first"), ("b", "/data/second")):
        command = f"python nonisotropic.py test --data_dir={folder}"
        hashed = {"train": {"hash": key, "replicate": 1}, "dataset": {"data_dir": f"digest of {folder}"}}
        hparams = {"runner": "test", "name": "conv", "replicate": 1, "hashed": hashed, "command": command}
        tests.append(FinishedRun(Path(key), key, hparams, {}))
    runs = {"test": tests}
    tell_apart(runs)
    assert [run.label for run in runs["test"]] == ["conv (data_dir=first)", "conv (data_dir=second)"]


def test_the_line_of_the_terminal_counts_models_that_were_measured_there_once() -> None:
    """Not those that were measured on clean images alone, nor one that was tested twice."""
    clean = FinishedRun(Path("c"), "c", {"name": "clean", "replicate": 1, "hashed": {}}, {"standard": {}})
    clean.result["standard"] |= {"accuracy": 0.9, "num_examples": 100}
    tests = [run("one", 0.4, 500), run("one", 0.5, 40), clean]
    for more, told in (([], "accuracy of one: "), ([run("two", 0.3, 500)], "the most robust of 2 models, one: ")):
        lines = found_in({"set": {"test": [*tests, *more], "evaluate_threat": []}})
        assert told in lines[0]


def test_an_order_of_models_is_by_what_all_have() -> None:
    """The figure under the anchors of training is there only for a model that was trained under others."""
    results = [{"N_adv": {}, OTHER_ANCHORS: {}}, {"N_adv": {}}, {"standard": {}}]
    assert hardest_last(results) == ["standard", "N_adv"]
    assert hardest_last(results[:1]) == ["N_adv", OTHER_ANCHORS]
    weak = finished("weak", {"N_adv": {"accuracy": 0.1}, OTHER_ANCHORS: {"accuracy": 0.1}})
    strong = finished("strong", {"N_adv": {"accuracy": 0.7}})
    assert by_accuracy([weak, strong]) == [strong, weak]


def finished(name: str, result: dict[str, Any]) -> FinishedRun:
    return FinishedRun(Path(name), name, {"name": name, "replicate": 1, "hashed": {}}, result)


def test_bars_and_points_under_different_sets_are_told_apart() -> None:
    """Accuracy at l-inf 0.02 beside that at 0.2 says nothing of the models."""
    runs = []
    for name, power in (("a", 0.02), ("b", 0.2), ("c", 0.2)):
        found = {"norm": "Linf", "threshold": power, "radius": None, "accuracy": 0.5, "num_examples": 100}
        runs.append(finished(name, {"adv": found}))
    assert charts._names(runs) == ["a\nLinf <= 0.02\n100 images", *(f"{n}\nLinf <= 0.2\n100 images" for n in "bc")]
    assert charts._names(runs[1:]) == ["b", "c"]
    assert measured_alike(runs, ("adv", "N_adv")) == runs[1:]


def test_of_several_measurements_the_one_of_most_anchors_speaks() -> None:
    few, usual = (finished(f"greedy_subsets_{count}", {"num_examples": 40}) for count in (5, 50))
    assert leading_measurement([few, usual]) == (usual, " (greedy_subsets_50, 40 images)")
    assert leading_measurement([few]) == (few, "")
    tells, hardly = (
        finished("greedy_subsets_50", {"num_examples": 40, "separation": {"PD": {"auroc": auroc}}})
        for auroc in (1, 0.6)
    )
    assert leading_measurement([tells, hardly])[0] is leading_measurement([hardly, tells])[0] is hardly


def kept(folder: Path, name: str, index: numpy.ndarray, right: numpy.ndarray) -> FinishedRun:
    """A run with its answers for each image."""
    made = run(name, float(right.mean()), len(index))
    (folder / name).mkdir()
    numpy.savez(folder / name / "examples.npz", index=index, N_adv_correct=right)
    return FinishedRun(folder / name, name, made.hparams, made.result)


def test_models_are_told_apart_by_their_common_images(tmp_path: Path) -> None:
    """400 images, of which one model errs on 20 more: their intervals overlap, and no luck does that."""
    runs = []
    for name, right in (("best", 320), ("other", 300), ("alike", 319)):
        index = numpy.arange(400)[::-1] if name == "other" else numpy.arange(400)
        runs.append(kept(tmp_path, name, index, index < right))
    told = first(*runs)
    assert "best stands best of 3" in told and told.endswith("; alike cannot be told from it by so few images.")
    assert "other images" not in told
    (line,) = found_in({"set": {"test": runs, "evaluate_threat": []}})[:1]
    assert line.endswith(" of 400 images; alike cannot be told from it by so few images") and "0.800 [0.758, " in line
    common = OnCommon.of(runs[0], runs[1], "N_adv_correct")
    assert common is not None and common.test is not None and common.test.p == pytest.approx(2 * 0.5**20)
    assert common.are_all and OnCommon.of(runs[0], run("elsewhere", 0.5, 400), "N_adv_correct") is None


def test_a_figure_on_easier_images_stands_best_of_nothing(tmp_path: Path) -> None:
    """On the 100 easy images the model of the lower figure is always right, and the other one on 90 of them."""
    easy, every = numpy.arange(100), numpy.arange(400)
    high = kept(tmp_path, "high", easy, easy < 90)
    low = kept(tmp_path, "low", every, (every < 100) | (every % 2 == 0))
    for tests in ([high, low], [low, high]):
        told = first(*tests)
        assert "high has the highest figure of 2: it is right on 90.0% of 100 images" in told
        assert "; low (100 in common) was measured on other images; low is right more often on the images in co" in told
        (line,) = found_in({"set": {"test": tests, "evaluate_threat": []}})[:1]
        assert "the highest figure of 2 models, high: " in line and " of 100 images; low (100 in common) was" in line
    apart = kept(tmp_path, "apart", every + 400, every < 100)
    assert "; apart (0 in common) was measured on other images." in first(high, apart)


def test_another_number_of_images_is_told_where_nobody_kept_answers() -> None:
    assert "; few (20) was measured on other images; few cannot be told" in first(
        run("many", 0.6, 400), run("few", 0.5, 20)
    )
