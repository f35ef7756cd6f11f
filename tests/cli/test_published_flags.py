"""Commands written for the paper's research code: the same runs, or a line that says what to use."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.main import flags_of, main
from cli.published_flags import ELSEWHERE, SUITES, TRANSLATIONS
from cli.runner_registry import RUNNERS

NAMED = ["--dataset_name=cifar10", "--model_name=cifar_resnet_20"]


def where(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words, "--display_output_location", "--root_dir=/r"]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_no_published_flag_is_one_of_ours() -> None:
    """Else it would never be translated, or would hide a flag of ours."""
    ours = set().union(*(flags_of(runner) for runner in RUNNERS))
    assert not ours & {*TRANSLATIONS, *SUITES, *ELSEWHERE}
    assert len({*TRANSLATIONS, *SUITES, *ELSEWHERE}) == len(TRANSLATIONS) + len(SUITES) + len(ELSEWHERE)


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        (["--optimizer_name=adam"], ["--optimizer=adam"]),
        (["--optimizer_name", "adam"], ["--optimizer=adam"]),
        (["--nesterov_momentum=0.8"], ["--momentum=0.8", "--nesterov"]),
        (["--nesterov_momentum=0"], []),
        (["--grad_accumulation_steps=4", "--grad_clipping_val", "2"], ["--accumulation=4", "--clip_grad=2"]),
        (["--use_amp", "--ema"], ["--precision=fp16", "--ema_decay=0.999"]),
        (["--use_cpu", "--platform=local", "--exact_project", "--float_16"], []),
        (["--N_aug", "--subset_selection=greedy"], ["--N_aug"]),
        (
            ["--N_aug", "--subset_selection=random", "--greedy_per_label=5"],
            ["--N_aug", "--selection=random", "--per_label=5"],
        ),
    ],
)
def test_flags_that_mean_the_same_give_the_same_run(
    published: list[str], ours: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert where(capsys, "train", *NAMED, *published) == where(capsys, "train", *NAMED, *ours)


def test_suites_of_corruptions(capsys: pytest.CaptureFixture[str]) -> None:
    """The published command of evaluate_threat, word for word but for the data set."""
    words = ["--dataset_name=cifar10", "--batch_size=96", "--float_16", "--in_memory", "--num_chunks=25"]
    found = where(capsys, "evaluate_threat", *words, "--v2_transformations", "--common_2d", "--common_2d_bar")
    assert found == where(capsys, "evaluate_threat", "--dataset_name=cifar10", "--suites=torchvision,C,C-bar")


@pytest.mark.parametrize("flag", ELSEWHERE)
def test_for_the_others_a_line_says_what_to_use(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *NAMED, f"--{flag}=1"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"--{flag} is a flag of the paper's research code: {ELSEWHERE[flag]}" in told


@pytest.mark.parametrize("flag", ["--use_tpu", "--gpu_ids", "--verbose"])
def test_a_suggestion_is_made_only_when_it_is_near(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *NAMED, flag]) == 2
    told = capsys.readouterr().err
    assert f"unknown argument {flag}; see" in told and "did you mean" not in told


def test_every_published_flag_is_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs/paper.md").read_text()
    assert all(f"`{flag}`" in guide for flag in (*TRANSLATIONS, *SUITES, *ELSEWHERE))
