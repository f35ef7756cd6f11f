"""Trainings with safe moves and without, side by side: accuracy under their worst mixture, in l-inf, under corruptions.

python benchmarks/study_safe_moves.py mnist_5k [SETTING ...] [--seeds=1,2,3]
python benchmarks/study_safe_moves.py emoji --data_dir=FOLDER [SETTING ...]     a folder of classes, 32x32

Hours on one core. Runs are kept as those of any command (NONISOTROPIC_HOME), so that the same words go on where it was
interrupted; --table prints what is complete. The adversaries mix the suite quick; seen corruptions are that suite,
held-out ones are those of C in no family of it (UNSEEN) and all of C-bar. Other flags go to every command.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.study_training import directory, run
from foundations.results import markdown_table

# The corruptions of C without noise, blur by a Gaussian or a lens, brightness, contrast, fog and pixels, which are like
# changes of the suite quick.
UNSEEN: tuple[str, ...] = ("glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "elastic_transform")
UNSEEN += ("jpeg_compression", "spatter", "saturate")
ATTACKS = ("--attacks=momentum_ce,momentum_targeted,apgd_ce", "--N_attack_iter=20")
IN_THE_SET = {  # of the figures of `test --safe_moves`
    "noise": "noise_alone",
    "mixture": "mixture_alone",
    "in the set": "accuracy",
    "mixture, no threat": "mixture_without_threat",
    "at the threshold": "binding",
}
COLUMNS = ("clean", "AutoAttack", *IN_THE_SET, "seen", "held out of C", "C-bar")


@dataclass(frozen=True)
class Study:
    """One data set.

    data, train   flags of every command, and of training
    longer        length of a training with as many passes as one against the worst mixture (three steps, two parts):
                  where a step has one pass (AugMix), and where it has two (random mixtures beside the clean part)
    growth        epochs in which mixtures grow to full size, where they do: the first half
    radius        of the noise, and of the l-inf ball
    thresholds    of PD-T and of PD, which hold 95 % of safe changes
    """

    data: Sequence[str]
    train: Sequence[str]
    longer: tuple[str, str]
    growth: int
    radius: str
    thresholds: tuple[str, str]
    num_examples: int = 100

    @property
    def settings(self) -> dict[str, Sequence[str]]:
        """Flags of training by name."""
        tangents, plain = (f"--N_adv_train_threshold={threshold}" for threshold in self.thresholds)
        inside = ("--N_adv_train", "--N_train_tangents", tangents)
        steps = ("--N_adv_train_attack_iter=3",)
        noise, at_random = f"--N_adv_train_radius={self.radius}", ("--N_adv_train_attack_iter=0",)
        mixed = ("--N_adv_train", "--N_train_safe_moves", "--N_train_without_threat", "--N_adv_train_radius=0")
        return {
            "standard": (),
            "AugMix": ("--augmix",),
            "AugMix, as many passes": ("--augmix", f"--training_steps={self.longer[0]}"),
            "random mixtures": (*mixed, *at_random),
            "random mixtures, as many passes": (*mixed, *at_random, f"--training_steps={self.longer[1]}"),
            "l-inf": ("--adv_train", "--adv_train_attack_iter=3", f"--adv_train_attack_power_Linf={self.radius}"),
            "PD-T": (*inside, *steps, noise),
            "worst mixture": (*mixed, *steps),
            "worst mixture, one step": (*mixed, "--N_adv_train_attack_iter=1"),
            "random mixtures, severity 5": (*mixed, *at_random, "--N_train_safe_moves=quick:5"),
            "worst mixture, severity 5": (*mixed, *steps, "--N_train_safe_moves=quick:5"),
            "worst mixture of AugMix": (*mixed, *steps, "--augmix"),
            "random mixtures, clean part .25": (*mixed, *at_random, "--adv_clean_weight=0.25"),
            "worst mixture, clean part .25": (*mixed, *steps, "--adv_clean_weight=0.25"),
            "worst mixture, clean part .75": (*mixed, *steps, "--adv_clean_weight=0.75"),
            "worst mixture, growing": (*mixed, *steps, f"--adv_train_growth_epochs={self.growth}"),
            "in the set": (*inside, *steps, noise, "--N_train_safe_moves"),
            "in the set of PD": ("--N_adv_train", plain, *steps, noise, "--N_train_safe_moves"),
        }


STUDIES = {
    "mnist_5k": Study(
        ("--dataset_name=mnist_5k",),
        ("--model_name=lenet", "--training_steps=10ep"),
        ("50ep", "25ep"),
        5,
        "0.1",
        ("0.431", "0.927"),
    ),
    "fashion_mnist": Study(
        ("--dataset_name=fashion_mnist",),
        ("--model_name=resnet_8", "--training_steps=3ep", "--precision=bf16"),
        ("15ep", "8ep"),
        1,
        "0.05",
        ("0.554", "1.12"),
    ),
    "emoji": Study(
        ("--dataset_name=image_folder", "--image_size=32"),
        ("--model_name=resnet_8", "--training_steps=30ep", "--lr_schedule=cosine", "--random_crop=2",
         "--random_flip=False", "--precision=bf16"),
        ("150ep", "75ep"),
        15,
        "4/255",
        ("0.739165", "1.01"),
    ),
}  # fmt: skip


def commands(study: Study, setting: str, seed: int) -> dict[str, tuple[str, ...]]:
    """All of one training: itself, the attacks, and the corruptions."""
    train = (*study.data, *study.train, *study.settings[setting], f"--train_replicate={seed}")
    test = ("test", *train, f"--test_replicate={seed}")
    inside = ("--N_adv_eval", "--safe_moves", "--tangents", f"--N_threshold={study.thresholds[0]}", *ATTACKS)
    ball = f"--adv_test_attack_power_Linf={study.radius}"
    corrupted = ("--standard_eval", "--corruption_eval", "--corruption_severities=4")
    return {
        "train": ("train", *train),
        "corruptions": (*test, *corrupted, "--corruption_suites=quick,C,C-bar", "--num_examples=1000"),
        "attacks": (*test, *inside, f"--N_radius={study.radius}", f"--num_examples={study.num_examples}"),
        "AutoAttack": (*test, "--adv_eval", ball, f"--num_examples={study.num_examples}"),
    }


def figures(study: Study, setting: str, seed: int) -> dict[str, float]:
    """Column -> accuracy, of what is complete."""
    results: dict[str, Any] = {}
    for name, words in commands(study, setting, seed).items():
        file = directory(*words) / "result.json"
        if file.is_file():
            results[name] = json.loads(file.read_text())
    found = {}
    if "train" in results:
        found["clean"] = results["train"]["final"]["test_accuracy"]
    if "attacks" in results:
        moves = results["attacks"]["N_adv_moves"]
        found |= {column: moves[key] for column, key in IN_THE_SET.items()}
    if "AutoAttack" in results:
        found["AutoAttack"] = results["AutoAttack"]["adv"]["accuracy"]
    if "corruptions" in results:
        found |= by_kind(results["corruptions"]["corruption"]["by_corruption"])
    return found


def by_kind(by_corruption: dict[str, dict[str, float]]) -> dict[str, float]:
    """Means over seen corruptions, those held out of C, and C-bar."""
    from threat_specification.perturbations.registry import SUITES

    kinds = {"seen": SUITES["quick"], "held out of C": UNSEEN, "C-bar": SUITES["C-bar"]}
    means = {name: statistics.mean(levels.values()) for name, levels in by_corruption.items()}
    return {kind: statistics.mean(means[name] for name in names) for kind, names in kinds.items()}


def table(study: Study, settings: Sequence[str], seeds: Sequence[int]) -> str:
    """Mean over the seeds, and the lowest to the highest."""
    lines = []
    for setting in settings:
        found = [figures(study, setting, seed) for seed in seeds]
        cells = []
        for column in COLUMNS:
            values = [each[column] for each in found if column in each]
            spread = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "-")
        lines.append([setting, *cells])
    return markdown_table(["training", *COLUMNS], lines)


def main(words: list[str]) -> None:
    flags = [word for word in words if word.startswith("--")]
    name, *settings = [word for word in words if not word.startswith("--")] or [""]
    if name not in STUDIES:
        sys.exit(__doc__)
    common = [flag for flag in flags if not flag.startswith(("--seeds=", "--table"))]
    study = replace(STUDIES[name], data=(*STUDIES[name].data, *common))
    settings = settings or list(study.settings)
    seeds = [int(seed) for flag in flags if flag.startswith("--seeds=") for seed in flag[8:].split(",")] or [1, 2, 3]
    run("compute_threat", *study.data)
    for seed in seeds if "--table" not in flags else ():
        for setting in settings:
            for command in commands(study, setting, seed).values():
                run(*command)
    print(table(study, settings, seeds))


if __name__ == "__main__":
    main(sys.argv[1:])
