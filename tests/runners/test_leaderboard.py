"""The comparison that multi_test ends in: table, paired tests, rank correlations, figure."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy
import pytest
from scipy.stats import binomtest

from runners.multi.leaderboard import can_be_compared, rank_correlation, scatter, write_leaderboard
from tests.conftest import TINY, Command


def test_a_leaderboard_over_several_models(digits_root: Command) -> None:
    toggles = ["--toggle_mixup", "--toggle_adv_train", "--adv_train_attack_iter=1", "--training_steps=1ep"]
    digits_root.ok("multi_train", *TINY, *toggles)
    words = ["multi_test", *TINY, *toggles, "--adv_eval", "--adv_test_attack_type=pgd", "--N_adv_eval"]
    words += ["--attacks=pgd", "--per_label=10", "--num_examples=12", "--N_attack_iter=3", "--N_radius=0.1"]
    result = digits_root.result(*words)
    directory = digits_root.where(*words)
    rows = list(csv.DictReader((directory / "leaderboard.csv").read_text().splitlines()))
    assert {row["model"] for row in rows} == {
        "conv_standard",
        "conv_mixup",
        "conv_adv_train",
        "conv_mixup+adv_train",
    }
    accuracies = [float(row["N_adv_accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert len(result["paired_tests"]) == 2 * 6
    assert all(0 <= test["p"] <= 1 for test in result["paired_tests"])
    assert (directory / "leaderboard.md").is_file()
    assert (directory / "leaderboard.png").read_bytes()[:4] == b"\x89PNG"
    assert set(result["rank_correlations"]) == {"standard against adv", "standard against N_adv", "adv against N_adv"}
    assert result["rank_correlations"]["standard against adv"] is None  # clean accuracy was not asked for


def evaluated(name: str, **accuracies: float) -> dict[str, Any]:
    found = {evaluation: {"accuracy": value, "num_examples": 50} for evaluation, value in accuracies.items()}
    return {"name": name, "result": found}


def kept(root: Path, name: str, first: int, right: numpy.ndarray) -> dict[str, Any]:
    """A model evaluated on the 10 images from number `first` on; rows of `right`: clean, isotropic, nonisotropic."""
    names = ("standard", "adv", "N_adv")
    (root / name).mkdir()
    columns = {f"{evaluation}_correct": row for evaluation, row in zip(names, right, strict=True)}
    numpy.savez(root / name / "examples.npz", index=numpy.arange(first, first + 10), **columns)
    accuracies = [{"accuracy": float(row.mean()), "num_examples": 10} for row in right]
    return {"name": name, "directory": name, "result": dict(zip(names, accuracies, strict=True))}


def test_tables_and_tests_of_a_leaderboard_by_hand(tmp_path: Path) -> None:
    place = numpy.arange(10)
    models = [
        kept(tmp_path, "a", 0, numpy.stack([place < count for count in (9, 2, 3)])),
        kept(tmp_path, "b", 0, numpy.stack([place < count for count in (8, 4, 5)])),
        kept(tmp_path, "c", 1, numpy.stack([place >= 10 - count for count in (7, 6, 1)])),
    ]
    found = write_leaderboard(tmp_path, tmp_path, models)
    correlations = {"standard against adv": -1, "standard against N_adv": 0.5, "adv against N_adv": -0.5}
    assert found["rank_correlations"] == pytest.approx(correlations)
    assert found["rank_correlation"] == pytest.approx(-0.5)
    rows = list(csv.DictReader((tmp_path / "leaderboard.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["b", "a", "c"]
    interval = binomtest(4, 10).proportion_ci(method="wilson")
    told = [float(rows[0][f"adv_{what}"]) for what in ("accuracy", "low", "high")]
    assert told == pytest.approx([0.4, interval.low, interval.high], abs=1e-4)
    # Of images 1 to 9, which both were tested on, a alone is right on 1, c alone on 5, 6, 7, 8, 9.
    pairs = {
        (t["evaluation"], t["first"], t["second"]): (t["only_first"], t["only_second"], t["p"])
        for t in found["paired_tests"]
    }
    assert len(pairs) == 9 and pairs["adv", "a", "c"] == (1, 5, pytest.approx(2 * (1 + 6) / 2**6))
    assert (
        "| adv        | a     | c      | 1                | 5                 | 0.219"
        in (tmp_path / "leaderboard.md").read_text()
    )


def test_of_many_answers_for_an_image_the_model_with_more_right_ones_wins(tmp_path: Path) -> None:
    """Corruptions of one image are no independent trials: an image counts once."""
    right = {"a": [[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]], "b": [[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 1]]}
    models = []
    for name, answers in right.items():
        (tmp_path / name).mkdir()
        rows = numpy.array(answers, bool)
        numpy.savez(tmp_path / name / "examples.npz", index=numpy.arange(4), corruption_correct=rows)
        accuracy = {"accuracy": float(rows.mean()), "num_examples": 4}
        models.append({"name": name, "directory": name, "result": {"corruption": accuracy}})
    found = write_leaderboard(tmp_path, tmp_path, models)
    told = {"evaluation": "corruption", "first": "a", "second": "b", "only_first": 2, "only_second": 1, "p": 1.0}
    assert found["paired_tests"] == [told]
    assert (tmp_path / "leaderboard.csv").read_text().startswith("model,corruption_accuracy,corruption_low")


def test_a_leaderboard_of_two_models_or_one(tmp_path: Path) -> None:
    right = numpy.arange(10) < numpy.array([[9], [4], [2]])
    models = [kept(tmp_path, "a", 0, right), kept(tmp_path, "b", 0, right[::-1])]
    alone = write_leaderboard(tmp_path, tmp_path, models[:1])
    assert alone["rank_correlation"] is None and not (tmp_path / "leaderboard.png").exists()
    failed = {"name": "c", "directory": "c", "error": "no such weights"}
    found = write_leaderboard(tmp_path, tmp_path, [*models, failed])
    assert found["rank_correlation"] is None and len(found["paired_tests"]) == 3
    assert (tmp_path / "leaderboard.png").read_bytes()[:4] == b"\x89PNG"


def test_accuracies_are_drawn_against_one_another() -> None:
    """A panel for every pair that two models have; marks at the accuracies, with Wilson's intervals."""
    models = [evaluated("a", standard=0.9, adv=0.2, N_adv=0.4), evaluated("b", standard=0.8, adv=0.5, N_adv=0.3)]
    words = {"standard": "on clean images", "adv": "under isotropic attack", "N_adv": "under nonisotropic attack"}
    panels = scatter(models).axes
    for axes, pair in zip(panels, (("standard", "adv"), ("standard", "N_adv"), ("adv", "N_adv")), strict=True):
        assert [axes.get_xlabel(), axes.get_ylabel()] == [f"accuracy {words[name]}" for name in pair]
        for bars, model in zip(axes.containers, models, strict=True):
            accuracies = [model["result"][name]["accuracy"] for name in pair]
            assert list(bars.lines[0].get_xydata()[0]) == accuracies
            for coordinate, accuracy in enumerate(accuracies):
                interval = bars.lines[2][coordinate].get_segments()[0][:, coordinate]
                assert interval == pytest.approx(wilson_by_scipy(accuracy), abs=1e-6)
    only = [evaluated("a", adv=0.1, N_adv=0.2), evaluated("b", adv=0.1, N_adv=0.3, standard=1.0)]
    assert len(scatter(only).axes) == 1 and can_be_compared(only)
    assert not can_be_compared([models[0], evaluated("c", standard=0.3)])


def test_a_model_looks_the_same_in_every_panel_and_in_the_legend() -> None:
    models = [evaluated("a", adv=0.2, N_adv=0.4)]
    models += [evaluated(name, standard=0.8, adv=0.5, N_adv=0.3) for name in "bc"]
    figure = scatter(models)
    legend = dict(
        zip([text.get_text() for text in figure.legends[0].texts], figure.legends[0].legend_handles, strict=True)
    )
    looks = [look(legend[name]) for name in "abc"]
    drawn = [[look(bars.lines[0]) for bars in axes.containers] for axes in figure.axes]
    assert drawn == [looks[1:], looks[1:], looks] and len(set(looks)) == 3
    assert all(face == "none" for _, _, face in looks)  # b does not vanish below c
    many = [evaluated(str(i), adv=i / 20, N_adv=i / 20) for i in range(15)]
    assert len({look(bars.lines[0]) for bars in scatter(many).axes[0].containers}) == 15
    more = scatter([*many, evaluated("15", adv=0.9, N_adv=0.9)])
    assert not more.legends and len({look(bars.lines[0]) for bars in more.axes[0].containers}) == 1
    assert panel_width(scatter(many)) == pytest.approx(panel_width(scatter(many[:2])), rel=0.02)


def look(line: Any) -> tuple[str, str, str]:
    return line.get_color(), line.get_marker(), line.get_markerfacecolor()


def panel_width(figure: Any) -> float:
    """The width of the first panel in inches."""
    figure.draw_without_rendering()
    return figure.axes[0].get_position().width * figure.get_size_inches()[0]


def test_rank_correlation_needs_three_models_that_differ() -> None:
    models = [
        evaluated(name, adv=adv, N_adv=inside)
        for name, adv, inside in (("a", 0.1, 0.3), ("b", 0.2, 0.2), ("c", 0.4, 0.5))
    ]
    assert rank_correlation(models, ("adv", "N_adv")) == pytest.approx(0.5)
    assert rank_correlation(models[:2], ("adv", "N_adv")) is None
    assert rank_correlation([*models[:2], evaluated("d", standard=1.0, adv=0.7)], ("adv", "N_adv")) is None
    level = [evaluated(name, adv=0.1, N_adv=inside) for name, inside in (("a", 0.1), ("b", 0.2), ("c", 0.3))]
    assert rank_correlation(level, ("adv", "N_adv")) is None


def wilson_by_scipy(share: float) -> tuple[float, float]:
    """Wilson's interval of a share of 50."""
    found = binomtest(round(50 * share), 50).proportion_ci(method="wilson")
    return found.low, found.high
