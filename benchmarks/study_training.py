"""Gain of each way of training under each attack: trains, tests, and prints a table with mean and spread.

python benchmarks/study_training.py mnist_5k [SETTING ...] [--seeds=1,2,3]
python benchmarks/study_training.py mnist_5k_without_radius [SETTING ...]       the pixel box as second bound
python benchmarks/study_training.py patches --data_dir=FOLDER [SETTING ...]     a folder by photograph_patches.py

Hours on one core. Runs are kept as those of any command (NONISOTROPIC_HOME), so that the same words go on where it was
interrupted, and several processes may work on different settings or seeds; --table prints what is complete,
--plot=FILE.png draws it. Other flags go to every command.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Study:
    """data, train: flags of every command; settings: flags of training by name; powers: of AutoAttack in l-inf."""

    data: Sequence[str]
    train: Sequence[str]
    settings: dict[str, Sequence[str]]
    powers: Sequence[str]
    thresholds: Sequence[str]
    radii: Sequence[str]
    num_examples: int
    columns: list[tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        cells = [("PD", threshold, radius) for radius in self.radii for threshold in self.thresholds]
        object.__setattr__(self, "columns", [("clean",), *(("l-inf", power) for power in self.powers), *cells])


BALL = ("--adv_train", "--adv_train_attack_iter=10")
INSIDE = ("--N_adv_train", "--N_adv_train_attack_iter=5", "--N_adv_train_step=5", "--adv_start=last")
WITHOUT_RADIUS = (
    "--N_adv_train",
    "--N_adv_train_radius=1",
    "--N_adv_train_attack_iter=5",
    "--N_adv_train_step=1.5",  # 0.3 by the pixel in each, as with a radius of 0.3
    "--adv_start=last",
)
GROWING = "--adv_train_growth_epochs=10"
COLOUR_BALL = ("--adv_train", "--adv_train_attack_iter=5")
INSIDE_8, INSIDE_16 = ((*INSIDE, f"--N_adv_train_radius={radius}/255") for radius in (8, 16))

STUDIES = {
    "mnist_5k": Study(
        data=("--dataset_name=mnist_5k",),
        train=("--model_name=lenet", "--training_steps=20ep"),
        settings={
            "standard": (),
            "N_aug": ("--N_aug",),
            "mixup": ("--mixup",),
            "adv_train 0.1": (*BALL, "--adv_train_attack_power_Linf=0.1"),
            "adv_train 0.2": BALL,
            "adv_train 0.3": (*BALL, "--adv_train_attack_power_Linf=0.3"),
            "N_adv_train": INSIDE,
            "adv_train 0.2 + N_adv_train": (*BALL, *INSIDE),
        },
        powers=("0.1", "0.2"),
        thresholds=("0.05", "0.1", "0.2"),
        radii=("0.2", "0.3"),
        num_examples=40,
    ),
    "mnist_5k_without_radius": Study(
        data=("--dataset_name=mnist_5k",),
        train=("--model_name=lenet", "--training_steps=20ep"),
        settings={
            "standard": (),
            "adv_train 0.3": (*BALL, "--adv_train_attack_power_Linf=0.3"),
            "adv_train 0.4, growing": (*BALL, "--adv_train_attack_power_Linf=0.4", GROWING),
            "N_adv_train, growing": (*WITHOUT_RADIUS, GROWING),
        },
        powers=("0.2",),
        thresholds=("0.05", "0.1"),
        radii=("1",),
        num_examples=40,
    ),
    "patches": Study(
        data=("--dataset_name=image_folder", "--image_size=32"),
        train=("--model_name=resnet_8", "--training_steps=20ep", "--batch_size=64", "--lr_schedule=cosine"),
        settings={
            "standard": (),
            "N_aug": ("--N_aug",),
            "mixup": ("--mixup",),
            "adv_train 8/255": COLOUR_BALL,
            "N_adv_train 8/255": INSIDE_8,
            "N_adv_train 16/255": INSIDE_16,
            "adv_train 8/255 + N_adv_train 16/255": (*COLOUR_BALL, *INSIDE_16),
        },
        powers=("4/255", "8/255"),
        thresholds=("0.05", "0.1", "0.2"),
        radii=("8/255", "16/255"),
        num_examples=40,
    ),
}


def run(runner: str, *words: str) -> Path:
    """A command to its end (at once where it is complete); the run's directory."""
    done = subprocess.run(
        [sys.executable, str(PROJECT / "nonisotropic.py"), runner, *words, "--quiet"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Path(done.stdout.splitlines()[-1])


def directory(runner: str, *words: str) -> Path:
    """Of a command, whether it ran or not."""
    return run(runner, *words, "--display_output_location")


def commands(study: Study, setting: str, seed: int) -> dict[str, tuple[str, ...]]:
    """All of one training: itself, the attacks inside the set, and AutoAttack by power."""
    seeds = (f"--train_replicate={seed}", f"--test_replicate={seed}")
    train = (*study.data, *study.train, *study.settings[setting], seeds[0])
    test = ("test", *train, seeds[1], f"--num_examples={study.num_examples}")
    grid = (f"--N_thresholds={','.join(study.thresholds)}", f"--N_radii={','.join(study.radii)}")
    headline = (f"--N_threshold={study.thresholds[1]}", f"--N_radius={study.radii[-1]}")
    balls = {f"l-inf {p}": (*test, "--adv_eval", f"--adv_test_attack_power_Linf={p}") for p in study.powers}
    return {"train": ("train", *train), "PD": (*test, "--N_adv_eval", *headline, *grid), **balls}


def figures(study: Study, setting: str, seed: int) -> dict[tuple[str, ...], float]:
    """Column -> accuracy, of what is complete."""
    results: dict[str, Any] = {}
    for name, words in commands(study, setting, seed).items():
        file = directory(*words) / "result.json"
        if file.is_file():
            results[name] = json.loads(file.read_text())
    found: dict[tuple[str, ...], float] = {}
    if "train" in results:
        found["clean",] = results["train"]["final"]["test_accuracy"]
    for power in study.powers:
        if f"l-inf {power}" in results:
            found["l-inf", power] = results[f"l-inf {power}"]["adv"]["accuracy"]
    rows = results["PD"]["N_adv"]["curve"] if "PD" in results else ()
    cells = {(round(row["threshold"], 6), round(row["radius"], 6)): row["accuracy"] for row in rows}
    for column in study.columns:
        if column[0] == "PD" and (cell := tuple(round(float(Fraction(text)), 6) for text in column[1:])) in cells:
            found[column] = cells[cell]
    return found


def plot(study: Study, settings: Sequence[str], seeds: Sequence[int], file: Path) -> None:
    """Clean accuracy, that in the largest ball and in the middle cell of the largest radius: a dot for the mean, a line
    from the lowest seed to the highest."""
    from matplotlib.figure import Figure

    threshold, radius = study.thresholds[1], study.radii[-1]
    shown: dict[tuple[str, ...], tuple[str, str, float]] = {
        ("clean",): ("clean", "#0072B2", -0.22),
        ("l-inf", study.powers[-1]): (f"AutoAttack, l-inf {study.powers[-1]}", "#E69F00", 0.0),
        ("PD", threshold, radius): (f"ensemble, PD {threshold} and radius {radius}", "#009E73", 0.22),
    }
    figure = Figure(figsize=(7, 1 + 0.45 * len(settings)))
    axes = figure.add_subplot()
    for row, setting in enumerate(settings):
        found = [figures(study, setting, seed) for seed in seeds]
        for column, (_, colour, offset) in shown.items():
            if values := [each[column] for each in found if column in each]:
                axes.plot([min(values), max(values)], [row + offset] * 2, color=colour, linewidth=2)
                axes.plot(statistics.mean(values), row + offset, "o", color=colour, markersize=7)
    axes.set_yticks(range(len(settings)), settings)
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("accuracy")
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    handles = [axes.plot([], [], "o", color=colour, label=label)[0] for label, colour, _ in shown.values()]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3, frameon=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(file, dpi=150, bbox_inches="tight")


def table(study: Study, settings: Sequence[str], seeds: Sequence[int]) -> str:
    """Mean over the seeds, and the lowest to the highest."""
    lines = ["| training | " + " | ".join(" ".join(column) for column in study.columns) + " |"]
    lines.append("|---" * (len(study.columns) + 1) + "|")
    for setting in settings:
        rows = [figures(study, setting, seed) for seed in seeds]
        cells = []
        for column in study.columns:
            values = [row[column] for row in rows if column in row]
            digits = 3 if column == ("clean",) else 2
            spread = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}" if values else "-")
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(words: list[str]) -> None:
    flags = [word for word in words if word.startswith("--")]
    name, *settings = [word for word in words if not word.startswith("--")] or [""]
    if name not in STUDIES:
        sys.exit(__doc__)
    common = [flag for flag in flags if not flag.startswith(("--seeds=", "--table", "--plot="))]
    study = replace(STUDIES[name], data=(*STUDIES[name].data, *common))
    settings = settings or list(study.settings)
    seeds = [int(seed) for flag in flags if flag.startswith("--seeds=") for seed in flag[8:].split(",")] or [1, 2, 3]
    run("compute_threat", *study.data)
    pictures = [Path(flag[7:]) for flag in flags if flag.startswith("--plot=")]
    for seed in seeds if "--table" not in flags and not pictures else ():
        for setting in settings:
            for command in commands(study, setting, seed).values():
                run(*command)
    print(table(study, settings, seeds))
    for file in pictures:
        plot(study, settings, seeds, file)


if __name__ == "__main__":
    main(sys.argv[1:])
