"""Models of one name are told apart, in a report, by the flags of their training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cli.main import main
from runners.report.answer import answer
from runners.report.charts import accuracy_bars
from runners.report.collect import FinishedRun, all_finished_runs
from runners.report.labels import tell_apart

TRAIN = "python nonisotropic.py train --dataset_name=digits --model_name=conv"


def train(key: str, flags: str, replicate: int = 1, name: str = "conv_standard") -> FinishedRun:
    hparams = {"runner": "train", "name": name, "hash": key, "replicate": replicate, "hashed": {}}
    return FinishedRun(Path(key), key, {**hparams, "command": f"{TRAIN} {flags}"}, {})


def test_of(key: str, flags: str, replicate: int = 1, result: Any = None, split: str = "test") -> FinishedRun:
    hashed = {"train": {"hash": key, "replicate": replicate}, "testing": {"split": split}}
    name = "conv_standard" if split == "test" else f"conv_standard_{split}"
    command = f"{TRAIN} {flags}".replace(" train ", " test ")
    hparams = {"runner": "test", "name": name, "hash": "t", "replicate": 1, "hashed": hashed, "command": command}
    return FinishedRun(Path(key), key, hparams, result or {})


test_of.__test__ = False  # type: ignore[attr-defined]


def labels(**runs: list[FinishedRun]) -> dict[str, list[str]]:
    tell_apart(runs)
    return {runner: [run.label for run in found] for runner, found in runs.items()}


def test_only_flags_that_tell_are_shown() -> None:
    trained = [
        train("a", "--lr=0.1 --batch_size=16"),
        train("b", "--lr=0.2 --batch_size=16"),
        train("c", "--batch_size=16"),
    ]
    shown = ["conv_standard (lr=0.1)", "conv_standard (lr=0.2)", "conv_standard"]
    assert labels(train=trained) == {"train": shown}


def test_one_training_keeps_its_name_and_repetitions_have_numbers() -> None:
    trained = [train("a", "--lr=0.1"), train("a", "--lr=0.1", 2), train("x", "", name="conv_adv_train")]
    assert labels(train=trained) == {"train": ["conv_standard", "conv_standard #2", "conv_adv_train"]}


def test_flags_of_the_evaluation_and_those_outside_the_hash_tell_nothing() -> None:
    tests = [test_of("abcdefg", "--num_examples=5 --data_dir=x --num_chunks=2"), test_of("hijklmn", "--data_dir=y")]
    assert labels(test=tests) == {"test": ["conv_standard (abcdef)", "conv_standard (hijklm)"]}


def test_a_test_of_a_directory_takes_the_flags_of_the_run_that_trained_it() -> None:
    trained = [train("a", "--lr=0.1"), train("b", "--lr=0.2")]
    tests = [test_of("b", "--train_dir=somewhere --lr=7", 3), test_of("a", "", split="validation")]
    shown = ["conv_standard #3 (lr=0.2)", "conv_standard_validation (lr=0.1)"]
    assert labels(train=trained, test=tests)["test"] == shown


def test_where_no_flag_tells_the_hash_does() -> None:
    assert labels(train=[train("abcdefgh", ""), train("stuvwxyz", ""), train("c", "--lr=0.3")]) == {
        "train": ["conv_standard (abcdef)", "conv_standard (stuvwx)", "conv_standard (lr=0.3)"]
    }


def test_as_few_flags_as_do() -> None:
    """Each of these has its own learning rate, so that batch sizes tell nothing more; and long values are cut."""
    flags = [f"--lr=0.{k} --batch_size={16 * (k % 2 + 1)}" for k in range(1, 4)]
    told = labels(train=[train(str(k), words) for k, words in enumerate(flags)])["train"]
    assert told == ["conv_standard (lr=0.1)", "conv_standard (lr=0.2)", "conv_standard (lr=0.3)"]
    long = labels(train=[train("a", f"--N_train_safe_moves={'x' * 80}"), train("b", "")])["train"]
    assert long == [f"conv_standard (N_train_safe_moves={'x' * 17}...)", "conv_standard"]


def test_two_trainings_of_one_name_are_two_models() -> None:
    """One of them was left out of "stands best of" once, since models were counted by name."""
    found = {"N_adv": {"norm": "PD", "threshold": 0.1, "radius": 0.3, "num_examples": 9000, "warnings": []}}
    tests = []
    for key, accuracy in (("a", 0.2), ("b", 0.8), ("c", 0.5)):
        tests.append(test_of(key, f"--lr=0.{ord(key)}", result={"N_adv": {**found["N_adv"], "accuracy": accuracy}}))
    runs = {"test": tests, "evaluate_threat": []}
    tell_apart(runs)
    assert "conv_standard (lr=0.98) stands best of 3" in answer(runs)[0]


def test_by_the_commands(tmp_path: Path) -> None:
    shared = ["--dataset_name=digits", "--model_name=conv", "--training_steps=2it", f"--root_dir={tmp_path}", "--quiet"]
    for more in ([], ["--lr=0.01"]):
        assert main(["train", *shared, *more]) == 0
        assert main(["test", *shared, *more, "--standard_eval", "--num_examples=20"]) == 0
    assert main(["report", "--dataset_name=digits", f"--root_dir={tmp_path}", "--quiet"]) == 0
    page = (tmp_path / "reports/digits/report.md").read_text()
    assert "conv_standard (lr=0.01)" in page and "of 2" in page
    found = all_finished_runs(tmp_path, "digits", print)
    tell_apart(found)
    assert sorted(run.label for run in found["test"]) == ["conv_standard", "conv_standard (lr=0.01)"]
    assert all(json.loads((run.path / "hparams.json").read_text())["hashed"]["train"]["hash"] == run.model[0]
               for run in found["test"] if run.model)  # fmt: skip


def test_bars_of_one_model_are_told_apart_by_set_and_images() -> None:
    clean = {"accuracy": 0.9, "num_examples": 1000}
    ball = {"accuracy": 0.5, "num_examples": 40, "norm": "Linf", "threshold": 0.1, "radius": None}
    inside = {"accuracy": 0.4, "num_examples": 40, "norm": "PD", "threshold": 0.1, "radius": 0.3}
    tests = [
        test_of("a", "", result={"standard": clean}),
        test_of("a", "", result={"adv": ball, "N_adv": inside}),
        test_of("b", "", replicate=2, result={"standard": clean}),
    ]
    shown = [text.get_text() for text in accuracy_bars(tests).axes[0].get_yticklabels()]
    both = "conv_standard\nLinf <= 0.1\nPD <= 0.1, Linf <= 0.3\n40 images"
    assert shown == ["conv_standard\n1,000 images", both, "conv_standard #2"]
